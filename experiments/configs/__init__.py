"""Configs: one file an experiment, each with `get_config(arguments: str) -> ConfigDict`."""
