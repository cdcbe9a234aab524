"""Experiments: training, evaluation and reports. Start with `python experiments/main.py --help`."""
