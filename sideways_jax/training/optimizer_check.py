"""Checks, before anything is computed, that a train step can use an optimizer."""

from __future__ import annotations

import optax

from sideways_jax.training.hold_back import owners
from sideways_jax.training.optimizer_trace import LOOKS_AT_VALUES, trace


def check_optimizer(tx: optax.GradientTransformation, params: tuple, *, hold: bool = False) -> None:
    """Raises ValueError for an optimizer that a train step on one device cannot use.

    It uses shapes alone. An optimizer that cannot be traced because it looks at values passes: it
    may work without `jax.jit`. On a mesh `division.divide` checks more.

    Args:
      tx: an optax transformation.
      params: D pytrees, or their shapes.
      hold: whether modules without gradients are held back, as with `update_every`.

    >>> import jax.numpy as jnp
    >>> check_optimizer(optax.sgd(1e-3), (jnp.ones(3),))
    >>> check_optimizer(optax.polyak_sgd(), (jnp.ones(3),))
    Traceback (most recent call last):
      ...
    ValueError: the optimizer cannot be used: ... argument: 'value'...
    """
    try:
        if hold:
            owners(tx, params)
        else:
            trace(tx, params)
    except LOOKS_AT_VALUES:
        pass
