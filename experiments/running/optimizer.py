"""The optimizer of `config.optimizer`, for either job."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sideways_jax.training.paper_optimizer import learning_rate_schedule, make_optimizer


class AverageState(NamedTuple):
    """Of `average_params`."""

    average: Any  # like the parameters


def make_schedule(options: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of the batch number 0, 1, ..., from `config.optimizer`."""
    schedule = learning_rate_schedule(**_schedule_options(options, steps_per_epoch))
    return lambda count: schedule(count // options.accumulate)


def make_tx(options: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`; a `clip_value` of 0 stands for none.

    Raises:
      ValueError: for a value that is out of range.
    """
    if options.accumulate < 1:
        raise ValueError(f"optimizer.accumulate={options.accumulate} must be at least 1 batch")
    if options.accumulate > steps_per_epoch:
        raise ValueError(
            f"optimizer.accumulate={options.accumulate} batches are more than the "
            f"{steps_per_epoch} of an epoch: set it to less"
        )
    if not 0 <= options.ema < 1:
        raise ValueError(f"optimizer.ema={options.ema} must be at least 0 and below 1, 0 for none")
    tx = make_optimizer(
        options.name,
        momentum=options.momentum,
        clip_value=options.clip_value or None,
        weight_decay=options.weight_decay,
        decay_coupling=options.decay_coupling,
        **_schedule_options(options, steps_per_epoch),
    )
    if options.ema:
        tx = optax.chain(tx, average_params(options.ema))
    if options.accumulate > 1:
        tx = _accumulated(tx, options.accumulate)
    return tx


def _accumulated(tx: optax.GradientTransformation, count: int) -> optax.GradientTransformation:
    several = optax.MultiSteps(tx, count).gradient_transformation()

    def update(updates, state, params=None):
        # optax divides a gradient by a number of steps, an integer, which fails where
        # jax_numpy_dtype_promotion is strict.
        with jax.numpy_dtype_promotion("standard"):
            return several.update(updates, state, params)

    return optax.GradientTransformation(several.init, update)


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps the exponential moving average (EMA) of the parameters; the updates stay as they are.

    With the parameters theta_t after the update t, and theta_0 the initial ones, a_0 = theta_0 and

        a_t = decay_t a_{t-1} + (1 - decay_t) theta_t,  decay_t = min(decay, (1 + t) / (10 + t))

    so that the first steps, which are far from the last, are soon forgotten. It has to be the last
    transformation of a chain.
    """

    def init(params):
        return AverageState(jax.tree.map(jnp.copy, params)), jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        (average,), count = state
        count = count + 1
        t = count.astype(jnp.float32)
        kept = jnp.minimum(decay, (1 + t) / (10 + t))

        def mix(old, param, change):
            new = (param + change.astype(param.dtype)).astype(jnp.float32)
            return (kept * old.astype(jnp.float32) + (1 - kept) * new).astype(old.dtype)

        return updates, (AverageState(jax.tree.map(mix, average, params, updates)), count)

    return optax.GradientTransformation(init, update)


def params_for_tests(params: Any, opt_state: Any) -> Any:
    """The parameters to test with: their average, if the optimizer keeps one."""
    found = [
        one
        for one in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, AverageState))
        if isinstance(one, AverageState)
    ]
    return found[0].average if found else params


def _schedule_options(options: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
    names = ("learning_rate", "warmup_epochs", "drop_epochs", "drop_factor", "cosine_epochs")
    epoch = steps_per_epoch / options.accumulate  # in updates
    return {name: options[name] for name in names} | {"steps_per_epoch": epoch}
