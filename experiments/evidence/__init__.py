"""What `experiments/reproduce.py` measures: studies, what they train, and the report.

`studies/` has a file for every WHAT, `training/` what they train and on what, `report/` the page.
"""
