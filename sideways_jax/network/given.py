"""Networks that begin with given weights."""

from __future__ import annotations

import dataclasses

from sideways_jax.network.checks import check_tuples
from sideways_jax.network.module import Module
from sideways_jax.network.network import Network
from sideways_jax.tools.trees import PyTree


def starting_with(network: Network, params: tuple, state: tuple) -> Network:
    """The same network, whose `init` gives these parameters and this state, whatever the key.

    So every execution, optimizer and average begins with them.

    Args:
      network: D modules.
      params, state: tuples of D pytrees of arrays. NumPy's can be used on any number of devices.

    Raises:
      ValueError: unless there is one pytree for every module.

    >>> import jax, jax.numpy as jnp
    >>> double = Module(lambda key, x: (jnp.float32(2), ()),
    ...                 lambda params, state, x, *, train, rng: (params * x, state))
    >>> network = starting_with(Network([double]), (jnp.float32(3),), ((),))
    >>> network.init(jax.random.key(0), jnp.ones(4))[0]
    (Array(3., dtype=float32),)
    """
    check_tuples(network.depth, params, state)

    def fixed(module: Module, given: tuple[PyTree, PyTree]) -> Module:
        return module._replace(init=lambda key, x: given)

    pairs = zip(params, state, strict=True)
    modules = [fixed(module, pair) for module, pair in zip(network.modules, pairs, strict=True)]
    return dataclasses.replace(network, modules=modules)
