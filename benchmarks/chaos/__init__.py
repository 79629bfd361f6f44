"""Fleets of agents at work while servers fail. `python -m benchmarks.chaos` runs them."""
