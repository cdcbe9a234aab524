"""The optimiser of `config.optimizer`, for either job."""

from __future__ import annotations

from typing import Any

import optax
from ml_collections import ConfigDict

from sideways_jax.optimizer import make_optimizer


def schedule_options(config: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
    """The arguments of `sideways_jax.optimizer.learning_rate_schedule`."""
    names = ("learning_rate", "warmup_epochs", "drop_epochs", "drop_factor")
    options = {name: config.optimizer[name] for name in names}
    return options | {"steps_per_epoch": steps_per_epoch}


def make_tx(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser; a `clip_value` of 0 stands for none."""
    return make_optimizer(
        config.optimizer.name,
        momentum=config.optimizer.momentum,
        clip_value=config.optimizer.clip_value or None,
        weight_decay=config.optimizer.weight_decay,
        decay_coupling=config.optimizer.decay_coupling,
        **schedule_options(config, steps_per_epoch),
    )
