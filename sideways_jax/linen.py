"""Flax Linen modules as modules of a network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import jax
from flax import linen

from sideways_jax.network import Module

# How the argument that says "this is training" is called in the wild, and how to say yes.
TRAIN_ARGUMENTS = {
    "train": lambda train: train,
    "training": lambda train: train,
    "is_training": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}


def train_keywords(call, train: bool) -> dict[str, bool]:
    """Keyword arguments that tell `call` whether this is training, by its signature.

    >>> train_keywords(lambda x, *, deterministic: x, train=True)
    {'deterministic': False}
    """
    names = inspect.signature(call).parameters
    return {name: say(train) for name, say in TRAIN_ARGUMENTS.items() if name in names}


def from_linen(module: linen.Module, *, rng_streams: Sequence[str] = ("dropout",)) -> Module:
    """Wraps a Flax Linen module: `params` are trained, all other collections are state.

    If `module.__call__` has an argument named `train`, `training`, `is_training`, `deterministic`
    or `use_running_average`, it is told whether this is training.

    Args:
      module: takes one argument, the activation of the module below, beside those.
      rng_streams: the names of the random streams that it draws from; each gets a key of its own,
        fresh for every module and frame.

    >>> import jax, jax.numpy as jnp
    >>> dense = from_linen(linen.Dense(3))
    >>> params, state = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.float32))
    >>> params["kernel"].shape, state
    ((5, 3), {})
    """
    call = type(module).__call__

    def streams(rng):
        if rng is None:
            return {}
        if len(rng_streams) == 1:
            return {rng_streams[0]: rng}
        return {name: jax.random.fold_in(rng, n) for n, name in enumerate(rng_streams)}

    def init(key, x):
        params_key, other_key = jax.random.split(key)
        rngs = {"params": params_key, **streams(other_key)}
        shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
        variables = dict(module.lazy_init(rngs, shape, **train_keywords(call, train=False)))
        params = variables.pop("params", {})
        variables.pop("intermediates", None)
        return params, variables

    def apply(params, state, x, *, train, rng):
        variables = {"params": params, **state}
        keywords = train_keywords(call, train)
        if not train or not state:
            return module.apply(variables, x, rngs=streams(rng), **keywords), state
        y, new_state = module.apply(variables, x, rngs=streams(rng), mutable=[*state], **keywords)
        return y, dict(new_state)

    return Module(init, apply)
