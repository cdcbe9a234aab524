"""The internals of `experiments/benchmark.py`."""
