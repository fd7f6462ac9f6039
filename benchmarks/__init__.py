"""Benchmarks of fastbp and its peers: `pytest --benchmark-only`, then `python -m benchmarks`."""
