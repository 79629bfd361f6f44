"""Benchmarks. `python -m benchmarks.bench_x` answers one question, `python -m benchmarks` runs all.

Every bench starts its own server and runs its variants in turn (A B C A B C ...). Variants are
compared within a round, so that a slow moment of the machine affects all of them. Compare the
ratios: absolute times depend on the machine. See README.md.
"""
