"""Benchmarks: each runs this project and a peer in turn on the same work; `jobs/benchmark.py` is their command."""
