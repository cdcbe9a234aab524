"""A module without gradients gets no update, and its part of the optimizer's state stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sideways_jax.tools.trees import PyTree
from sideways_jax.training.module_flow import Known, Several
from sideways_jax.training.ownership import Ownership, find_owners


def owners(tx: optax.GradientTransformation, params: tuple) -> PyTree:
    """Which module each leaf of an optimizer's state belongs to; None for a leaf of no module.

    `find_owners` traces `tx`, without computing anything, and follows the numbers of every module
    through it. The shapes and dtypes of leaves do not matter.

    Args:
      tx: the transformation.
      params: D pytrees, or their shapes.

    Returns:
      A pytree like `tx.init(params)` with an int or None for every leaf.

    Raises:
      ValueError: if a leaf belongs to several modules.

    >>> import jax.numpy as jnp
    >>> owners(optax.trace(0.9), (jnp.ones(3), jnp.ones((2, 2)))).trace
    (0, 1)
    """
    found = find_owners(tx, params)
    check_separable(found)
    return jax.tree.unflatten(jax.tree.structure(found.state), found.homes)


def check_separable(found: Ownership) -> None:
    """Raises ValueError if a leaf of an optimizer's state has numbers of several modules in it."""
    leaves = jax.tree_util.tree_leaves_with_path(found.state)
    for (path, leaf), place in zip(leaves, found.places, strict=True):
        if leaf.size > 1 and (place == Known.JOINED or isinstance(place, Several)):
            why = place.reason if isinstance(place, Several) else "numbers of modules are joined"
            raise ValueError(
                "update_every leaves a module without gradients as it is, its part of the "
                f"optimizer's state as well, but {jax.tree_util.keystr(path)} of that state, an "
                f"array {list(leaf.shape)}, belongs to several modules: {why}. Use a "
                "transformation that keeps the leaves of the parameters apart, as all do but "
                "optax.flatten and a few others, or one update per episode (update_every=None)"
            )


def hold_back(
    tx: optax.GradientTransformation,
    trained: jax.Array,
    new: PyTree,
    old: PyTree,
    params: tuple,
) -> PyTree:
    """The new state of an optimizer, with the old values for modules that were not trained.

    Zero gradients are not enough: momentum would still move the weights, and decay.

    Args:
      tx: the transformation that both states belong to.
      trained: bool[D], gamma_i > 0.
      new, old: states of `tx`. Leaves of no module, such as a count of steps, come from `new`.
      params: tuple of D pytrees.

    Raises:
      ValueError: if a leaf of the state belongs to several modules.
    """

    def choose(i, new_leaf, old_leaf):
        return new_leaf if i is None else jnp.where(trained[i], new_leaf, old_leaf)

    return jax.tree.map(choose, owners(tx, params), new, old, is_leaf=lambda x: x is None)
