"""The suites: one file for each `--suite`; `speedup.py` is `--suite=table2`.

To add one, write a file that ends with `SUITE = Suite(...)` (defined in `rig/suite.py`) and add it
to `SUITES` of `experiments/benchmark.py`. A setting that no other suite has needs a line in
`suite.HELP`, from which its flag is made.
"""
