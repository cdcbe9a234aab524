"""What experiments/torture.py does to runs, one trial a file."""
