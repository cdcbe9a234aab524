"""One module: a pair of pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sideways_jax.tools.trees import PyTree


class Module(NamedTuple):
    """One module `H_i(h, theta_i)` of the paper (section 3.1), as a pair of pure functions.

    Attributes:
      init: `init(key, x) -> (params, state)`. `x` is an array or a `jax.ShapeDtypeStruct` with the
        shape of a batch of inputs, `[B, ...]`; only its shape and dtype may be used.
      apply: `apply(params, state, x, *, train, rng) -> (y, new_state)`. `state` holds what is
        neither trained nor sent on, such as the running statistics of a normalisation. `rng` is a
        key that is fresh for every module and frame, or None.

    Parameters, state, inputs and outputs are pytrees; a module without parameters or state has
    `()` or `{}` in their place.

    >>> import jax, jax.numpy as jnp
    >>> scale = Module(init=lambda key, x: (jnp.float32(2.0), ()),
    ...                apply=lambda params, state, x, *, train, rng: (params * x, state))
    >>> scale.apply(jnp.float32(2.0), (), jnp.float32(3.0), train=False, rng=None)[0].item()
    6.0
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[PyTree, PyTree]]


def key_shape() -> Any:
    """The shape and dtype of a key, where only shapes are looked at."""
    return jax.eval_shape(lambda: jax.random.key(0))


def module_key(
    rng: jax.Array | None, index: jax.Array | int, frame_id: jax.Array | int
) -> jax.Array | None:
    """The key of module `index` (0-based) for frame `frame_id` (0-based), None without `rng`.

    It depends on the module and the frame alone, not on the step or the device, so that every
    execution draws the same dropout masks.
    """
    if rng is None:
        return None
    return jax.random.fold_in(jax.random.fold_in(rng, index), frame_id)
