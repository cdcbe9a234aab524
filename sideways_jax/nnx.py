"""Flax NNX modules as modules of a network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sideways_jax.network import Module, PyTree


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module) -> Module:
    """Wraps a Flax NNX module: `nnx.Param`s are trained, all other variables are state.

    Dropout draws from the key that is fresh for every module and frame instead of the streams
    inside the NNX module; `deterministic` and `use_running_average` follow `train`.

    Args:
      build: a function that makes the NNX module from `nnx.Rngs`, called by every `init`; or an NNX
        module that exists, whose values are then what every `init` returns (it ignores its key).

    >>> import jax, jax.numpy as jnp
    >>> dense = from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs))
    >>> params, state = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.float32))
    >>> params["kernel"].shape
    (5, 3)
    """
    exists = isinstance(build, nnx.Module)
    template = build if exists else nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, params_template, rng_template, state_template = _split(template)

    def init(key, x):
        del x  # An NNX module knows its shapes.
        _, params, _, state = _split(build if exists else build(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def apply(params, state, x, *, train, rng):
        module = nnx.merge(
            graph,
            _filled(params_template, params),
            _streams(rng_template, rng, train),
            _filled(state_template, state),
        )
        module.set_attributes(
            deterministic=not train, use_running_average=not train, raise_if_not_found=False
        )
        y = module(x)
        return y, nnx.to_pure_dict(_split(module)[3]) if train else state

    return Module(init, apply)


def _split(module: nnx.Module):
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _filled(template: nnx.State, values: PyTree) -> nnx.State:
    filled = jax.tree.map(lambda leaf: leaf, template)  # A copy: the next line writes into it.
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _streams(template: nnx.State, rng: jax.Array | None, train: bool) -> nnx.State:
    """The random streams, started anew from `rng`: each has a key of its own and counts from 0."""
    variables = nnx.to_flat_state(template)
    if rng is None:
        if train and variables:
            raise ValueError("this NNX module has random streams (dropout?), training needs rng=")
        rng = jax.random.key(0)  # Nothing draws from it.
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    restarted = []
    for n, (path, variable) in enumerate(variables):
        is_key = isinstance(variable, nnx.RngKey)
        value = jax.random.fold_in(rng, n) if is_key else jnp.zeros((), jnp.uint32)
        restarted.append((path, variable.replace(value)))
    return nnx.from_flat_state(restarted)
