"""Small operations on pytrees that several executions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def shape_of(tree: PyTree) -> PyTree:
    """The `jax.ShapeDtypeStruct` of every leaf."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def first_of(tree: PyTree) -> PyTree:
    """The shapes of one entry along the leading axis: of a frame, given frames `[K, ...]`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def zeros(tree: PyTree) -> PyTree:
    """Zeros with the shape and dtype of every leaf, which may be a `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def select(condition: jax.Array, tree: PyTree, otherwise: PyTree = None) -> PyTree:
    """Every leaf of `tree` where `condition` holds, else of `otherwise` (default: zeros).

    The condition is a scalar, or `[B]` with one truth value for every example of leaves `[B, ...]`.
    A selection, not a product: a NaN in what is not chosen does not get through. Leaves take the
    dtype of `otherwise`, so that a scan can carry them.
    """

    def choose(x, y):
        condition_ = condition
        if jnp.ndim(condition):
            condition_ = jnp.reshape(condition, condition.shape + (1,) * (jnp.ndim(x) - 1))
        return jnp.where(condition_, x, y).astype(jnp.result_type(y))

    if otherwise is None:
        return jax.tree.map(lambda x: choose(x, jnp.zeros_like(x)), tree)
    return jax.tree.map(choose, tree, otherwise)


def average(total: PyTree, count: jax.Array) -> PyTree:
    """`total / count`, and zero where nothing was counted."""
    return jax.tree.map(lambda x: x / jnp.maximum(count, 1).astype(x.dtype), total)


def each_example(function: Callable, *batches: PyTree) -> PyTree:
    """`function`, which takes batches `[B, ...]` to something, of every example alone: `[B, ...]`.

    >>> each_example(jnp.mean, jnp.arange(6.0).reshape(2, 3))
    Array([1., 4.], dtype=float32)
    """

    def alone(*examples):
        return function(*jax.tree.map(lambda x: x[None], examples))

    return jax.vmap(alone)(*batches)


def masked_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean of those `values` that are `valid`, of the same shape; zero if there are none."""
    return average(jnp.sum(jnp.where(valid, values, jnp.zeros_like(values))), jnp.sum(valid))
