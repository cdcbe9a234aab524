"""Small operations on pytrees that several executions share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["value"])
@dataclasses.dataclass(frozen=True)
class Static:
    """A hashable value in a pytree. It belongs to the structure and has no leaves."""

    value: Hashable


def shape_of(tree: PyTree) -> PyTree:
    """The `jax.ShapeDtypeStruct` of every leaf."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def same_structure(one: PyTree, other: PyTree) -> bool:
    """Whether two pytrees differ in nothing but their leaves.

    >>> same_structure((1, [2]), (3.0, [4.0])), same_structure((1, [2]), (1, 2))
    (True, False)
    """
    structure: Any = jax.tree.structure(one)  # The class has no type that mypy finds in JAX.
    return structure == jax.tree.structure(other)


def first_of(tree: PyTree) -> PyTree:
    """The shapes of one entry along the leading axis: of a frame, given frames `[K, ...]`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def entry(tree: PyTree, index: jax.Array | int) -> PyTree:
    """One entry along the leading axis: a frame, given frames `[K, ...]`."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def zeros(tree: PyTree) -> PyTree:
    """Zeros with the shape and dtype of every leaf, which may be a `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def wide(dtype: Any) -> jnp.dtype:
    """The dtype to add up values of `dtype` in: float32 for narrower floats, else `dtype` itself.

    bfloat16 has 8 significant bits: 256 + 1 is 256, so that a sum of ones over frames stops there;
    float16 ends at 65,504. The wide dtype takes twice their bytes.

    >>> wide(jnp.bfloat16), wide(jnp.dtype("float64")), wide(jnp.dtype("int8"))
    (dtype('float32'), dtype('float64'), dtype('int8'))
    """
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


def wide_zeros(tree: PyTree) -> PyTree:
    """The start of a sum of such trees: zeros in the `wide` dtype of every leaf."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), shape_of(tree))


def accumulate(sums: PyTree, tree: PyTree) -> PyTree:
    """`sums + tree` in the dtypes of `sums`, which come from `wide_zeros`."""
    return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the dtypes of `like`, a tree of arrays or their shapes."""
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), tree, like)


def squared_norm(tree: PyTree, like: PyTree = None) -> jax.Array:
    """The sum of the squares of all elements, in the widest dtype of `like`, float32 at least."""
    dtypes = [
        jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(tree if like is None else like)
    ]
    widest = max([jnp.dtype(jnp.float32), *dtypes], key=lambda dtype: dtype.itemsize)
    squares = [jnp.sum(jnp.square(jnp.abs(x).astype(widest))) for x in jax.tree.leaves(tree)]
    return sum(squares, start=jnp.zeros((), widest))


def norm(tree: PyTree) -> jax.Array:
    """The L2 norm of all elements, in float32 at least.

    >>> norm({"a": jnp.full((4,), 600, jnp.float16)})  # The squares are beyond float16.
    Array(1200., dtype=float32)
    """
    return jnp.sqrt(squared_norm(tree))


def select(condition: jax.Array, tree: PyTree, otherwise: PyTree = None) -> PyTree:
    """Every leaf of `tree` where `condition` holds, else of `otherwise` (default: zeros).

    The condition is a scalar, or `[B]` with one truth value for every example of leaves `[B, ...]`.
    It is `where`, not a product: a NaN in what is not chosen has no effect. Leaves take the
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


def average(total: PyTree, count: jax.Array | int, like: PyTree = None) -> PyTree:
    """`total / count`, and zero where nothing was counted.

    The division is in the `wide` dtype of the total, so that no count is too large for it.

    Args:
      total: sums.
      count: how many values were added, a scalar.
      like: arrays or their shapes, whose dtypes the means get: for sums of gradients, the
        parameters. By default means have the dtypes of the total, and for integers a float.

    >>> total = jnp.asarray(70_000.0, jnp.float32)
    >>> average(total, 70_000, like=jnp.zeros((), jnp.float16))
    Array(1., dtype=float16)
    """

    def divide(x):
        mean = x.astype(wide(x.dtype)) / jnp.maximum(count, 1).astype(wide(x.dtype))
        return mean.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else mean

    if like is None:
        return jax.tree.map(divide, total)
    wider = jax.tree.map(lambda x: x.astype(wide(x.dtype)), total)
    return cast_like(jax.tree.map(divide, wider), like)


def each_example(function: Callable, *batches: PyTree) -> PyTree:
    """Applies `function`, which takes batches, to every example as a batch of one: `[B, ...]`.

    >>> each_example(jnp.mean, jnp.arange(6.0).reshape(2, 3))
    Array([1., 4.], dtype=float32)
    """

    def alone(*examples):
        return function(*jax.tree.map(lambda x: x[None], examples))

    return jax.vmap(alone)(*batches)


def masked_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean of the `values` where `valid`, of the same shape, is true; zero if it never is.

    In the `wide` dtype of the values: the mean of bfloat16 losses is float32.
    """
    values = values.astype(wide(values.dtype))
    return average(jnp.sum(jnp.where(valid, values, jnp.zeros_like(values))), jnp.sum(valid))
