"""The suites of `experiments/benchmark.py`, one file each."""
