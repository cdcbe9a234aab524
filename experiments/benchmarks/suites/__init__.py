"""What is measured: one file for each `--suite`.

To add one, write a file that ends with `SUITE = Suite(...)` (`rig/suite.py` says what that is) and
add it to `SUITES` of `experiments/benchmark.py`. A setting that no other suite has needs a line in
`suite.HELP`, and gets its flag from there.
"""
