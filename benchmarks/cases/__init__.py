"""Benchmark cases, one module an op, each with a list ``CASES``."""
