"""Measuring: processes, programs, rounds and the protocol of suites."""
