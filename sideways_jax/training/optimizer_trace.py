"""Tracing an optimizer; an optimizer that a train step cannot call is a clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.extend import core

from sideways_jax.tools.trees import PyTree, same_structure, shape_of

# What JAX raises when it traces a function that needs values.
LOOKS_AT_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Traced(NamedTuple):
    """An optimizer as two programs on the leaves of its arguments."""

    init: core.ClosedJaxpr  # params -> state
    update: core.ClosedJaxpr  # gradients, state, params -> updates, state
    state: PyTree  # shapes
    new_state: PyTree  # shapes, after an update


def trace(tx: optax.GradientTransformation, params: tuple) -> Traced:
    """The programs of `tx.init` and `tx.update`. Nothing is computed.

    Args:
      tx: an optax transformation, which may keep state and need parameters, but nothing else.
      params: D pytrees, or their shapes.

    Raises:
      ValueError: if `tx` is no transformation, does not take these parameters, or needs more than
        gradients, its state and parameters.
      One of `LOOKS_AT_VALUES`: if it cannot be traced.
    """
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        raise ValueError(
            f"{tx!r} is not an optax transformation, which has the functions init and update: give "
            "optax.sgd(0.1), say, and not optax.sgd"
        )
    params = shape_of(params)
    init, state = _traced(tx.init, "init(params)", params)
    update, (updates, new_state) = _traced(
        tx.update, "update(gradients, state, params)", params, state, params
    )
    _check_updates(shape_of(updates), params)
    return Traced(init, update, shape_of(state), shape_of(new_state))


def _traced(function: Callable, call: str, *arguments: PyTree) -> tuple[core.ClosedJaxpr, PyTree]:
    try:
        return jax.make_jaxpr(function, return_shape=True)(*arguments)
    except LOOKS_AT_VALUES:
        raise  # It may work without jit; the caller decides whether that is enough.
    except Exception as error:
        raise ValueError(
            f"the optimizer cannot be used: a train step calls {call}, where params is a tuple "
            f"with a pytree for every module, and that fails with {type(error).__name__}: "
            f"{str(error).rstrip('.')}. A train step has nothing more to give, such as the loss "
            "(value=), functions (value_fn=, grad_fn=, obj_fn=) or gradients of single examples, "
            "which optax.polyak_sgd, optax.lbfgs with a line search, and reduce_on_plateau, momo, "
            "sophia and dpsgd of optax.contrib need"
        ) from error


def _check_updates(updates: PyTree, params: tuple) -> None:
    if not same_structure(updates, params):
        raise ValueError(
            "the optimizer gives updates with another structure than the parameters: "
            f"{jax.tree.structure(updates)} instead of {jax.tree.structure(params)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), update in zip(leaves, jax.tree.leaves(updates), strict=True):
        if not _fits(update.shape, leaf.shape):
            raise ValueError(
                f"the optimizer gives params{jax.tree_util.keystr(path)} of shape "
                f"{list(leaf.shape)} an update of shape {list(update.shape)}, with which the "
                "parameter would change its shape"
            )


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
