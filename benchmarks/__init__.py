"""Benchmarks: each `python -m benchmarks.bench_x` answers one question, `python -m benchmarks` all.

Every bench starts a server of its own, runs its variants in turns (A B C A B C ...) and compares
them round by round, so that what slows the machine down for a while slows all of them down.
Read the ratios; absolute times are those of the machine that they were taken on.
"""
