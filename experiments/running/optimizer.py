"""The optimizer of `config.optimizer`, for either job."""

from __future__ import annotations

from typing import Any

import optax
from ml_collections import ConfigDict

from sideways_jax.training.paper_optimizer import learning_rate_schedule, make_optimizer


def make_schedule(options: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of the update number 0, 1, ..., from `config.optimizer`."""
    return learning_rate_schedule(**_schedule_options(options, steps_per_epoch))


def make_tx(options: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`; a `clip_value` of 0 stands for none."""
    return make_optimizer(
        options.name,
        momentum=options.momentum,
        clip_value=options.clip_value or None,
        weight_decay=options.weight_decay,
        decay_coupling=options.decay_coupling,
        **_schedule_options(options, steps_per_epoch),
    )


def _schedule_options(options: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
    names = ("learning_rate", "warmup_epochs", "drop_epochs", "drop_factor")
    return {name: options[name] for name in names} | {"steps_per_epoch": steps_per_epoch}
