"""Whether a config has the fields that its job reads, no less and no more."""

from ml_collections import ConfigDict

from experiments.configs import autoencoder
from experiments.configs.common import base_config
from experiments.terminal.closest import did_you_mean
from experiments.terminal.command_line import fields
from sideways_jax.tools.names import check_name

TASKS = ("classification", "autoencoding")
# Their fields depend on their names: `data` and `models` check them.
_CHECKED_THERE = ("model.", "data.")


def check_fields(config: ConfigDict) -> None:
    """Raises ValueError for a field that nothing reads, and for one that is missing.

    A config file can set any field, so that a wrong name would be accepted in silence.
    """
    check_name("task", config.get("task", TASKS[0]), TASKS)
    known = base_config() if config.get("task") == TASKS[0] else autoencoder.get_config()
    valid = [name for name in fields(known) if not name.startswith(_CHECKED_THERE)]
    given = [name for name in fields(config) if not name.startswith(_CHECKED_THERE)]
    for name in given:
        if name not in valid:
            raise ValueError(
                f"unknown config field {name!r}; {did_you_mean(name, valid)}Fields of the config: "
                f"{', '.join(valid)}"
            )
    if missing := [name for name in valid if name not in given]:
        raise ValueError(
            f"the config lacks {', '.join(missing)}: start from "
            "experiments.configs.common.base_config()"
        )
