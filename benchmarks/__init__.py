"""Benchmarks against PyTorch, eager and compiled: ``python -m benchmarks.run --help``."""
