"""Other session stores, measured beside ours: each in a venv and a process of its own.

`python -m benchmarks.peers.install` makes the venvs. `registry` lists the peers, `worker` runs one
of them, `link` is our side of the talk with it. The `adapter_*` files use the peers' public API and
are imported in the peers' venvs only.
"""
