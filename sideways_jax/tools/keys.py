"""Keys of random numbers as plain numbers, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def is_key(leaf: Any) -> bool:
    """Whether an array, or the shape of one, holds keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of the numbers of a leaf."""
    return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf


def wrap_keys(data: Any, like: Any) -> jax.Array:
    """Keys of random numbers from their data.

    Args:
      data: uint32, as `jax.random.key_data` gives.
      like: shape and dtype of the keys; the dtype names the generator.
    """
    generator: list = []
    jax.eval_shape(lambda keys: generator.append(jax.random.key_impl(keys)), like)
    return jax.random.wrap_key_data(data.reshape(data_of(like).shape), impl=generator[0])
