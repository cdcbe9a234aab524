"""No update of a module without gradients: its part of the optimiser's state stays as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sideways_jax.trees import PyTree


def hold_back(
    tx: optax.GradientTransformation,
    trained: jax.Array,
    new: PyTree,
    old: PyTree,
    params: tuple,
) -> PyTree:
    """The new state of an optimiser, but the old one for modules that were not trained.

    Zero gradients are not enough: momentum would go on moving the weights and decaying.

    Args:
      tx: the transformation that both states belong to.
      trained: bool[D], gamma_i > 0.
      new, old: states of `tx`. What is not shaped like the parameters in them, such as a count of
        steps, is taken from `new`.
      params: tuple of D pytrees.
    """
    module_index = tuple(
        jax.tree.map(lambda _, i=i: i, module_params) for i, module_params in enumerate(params)
    )
    owner = optax.tree_utils.tree_map_params(
        tx, lambda _, i: i, new, module_index, transform_non_params=lambda _: None
    )

    def choose(i, new_leaf, old_leaf):
        return new_leaf if i is None else jnp.where(trained[i], new_leaf, old_leaf)

    return jax.tree.map(choose, owner, new, old, is_leaf=lambda x: x is None)
