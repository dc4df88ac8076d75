"""The GPU protocol: `python -m benchmarks.gpu` (see __main__.py)."""
