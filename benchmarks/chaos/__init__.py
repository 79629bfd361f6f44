"""Fleets of agents that work while servers fail. `python -m benchmarks.chaos` runs them."""
