"""What `experiments/compare_rules.py` compares: a file for every study."""
