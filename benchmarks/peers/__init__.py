"""Other session stores, for comparison. Each has its own venv and process.

`python -m benchmarks.peers.install` makes the venvs. `registry` lists the peers, `worker` runs one
of them, and `link` is our side of the connection to it. The `adapter_*` files use the public API of
the peers and are imported only in the peers' venvs.
"""
