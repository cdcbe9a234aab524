"""Fields that are newer than a run: their defaults are what it did."""

from ml_collections import ConfigDict

import data
from experiments.configs import autoencoder
from experiments.configs.common import base_config


def completed(config: ConfigDict) -> ConfigDict:
    """The config of an earlier version, with the default of every field that it does not have.

    Fields of the network, and fields that no longer exist, are left as they are.

    >>> completed(ConfigDict({"task": "classification", "model": {}})).optimizer.ema
    0.0
    """
    stream = config.get("task") == "autoencoding"
    known = autoencoder.get_config() if stream else base_config()
    name = config.get("data", {}).get("name")
    known.data = {} if name is None else _default(name)
    del known["model"]
    return ConfigDict(_merged(known.to_dict(), config.to_dict()))


def _default(name: str) -> ConfigDict | dict:
    try:
        return data.default_config(name)
    except ValueError:  # A data set of the user's own that is not there: it has no new fields.
        return {}


def _merged(defaults: dict, given: dict) -> dict:
    """`given`, with what `defaults` have and it has not."""
    both = dict(given)
    for name, value in defaults.items():
        if name not in given:
            both[name] = value
        elif isinstance(value, dict) and isinstance(given[name], dict):
            both[name] = _merged(value, given[name])
    return both
