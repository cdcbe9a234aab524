"""No update of a module without gradients: its part of the optimiser's state stays as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sideways_jax.tools.trees import PyTree, shape_of


def owners(tx: optax.GradientTransformation, params: tuple) -> PyTree:
    """Which module each leaf of an optimiser's state belongs to, None for what belongs to none.

    Found out from outside, for any transformation: what changes its shape (or dtype) when the
    parameters of module i change theirs belongs to module i.

    Args:
      tx: the transformation.
      params: D pytrees, or their shapes.

    Returns:
      A pytree like `tx.init(params)` with an int or None for every leaf.

    >>> import jax.numpy as jnp
    >>> owners(optax.trace(0.9), (jnp.ones(3), jnp.ones((2, 2)))).trace
    (0, 1)
    """
    params = shape_of(params)
    leaves, structure = jax.tree.flatten(jax.eval_shape(tx.init, params))
    owner: list[int | None] = [None] * len(leaves)
    for i in range(len(params)):
        other = (*params[:i], jax.tree.map(_another_shape, params[i]), *params[i + 1 :])
        changed = structure.flatten_up_to(jax.eval_shape(tx.init, other))
        for k, (before, after) in enumerate(zip(leaves, changed, strict=True)):
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                owner[k] = i
    return jax.tree.unflatten(structure, owner)


def _another_shape(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if x.ndim:  # As many axes as before: masks may go by that.
        return jax.ShapeDtypeStruct(tuple(n + 1 for n in x.shape), x.dtype)
    return jax.ShapeDtypeStruct((), jnp.float16 if x.dtype != jnp.float16 else jnp.float32)


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

    def choose(i, new_leaf, old_leaf):
        return new_leaf if i is None else jnp.where(trained[i], new_leaf, old_leaf)

    return jax.tree.map(choose, owners(tx, params), new, old, is_leaf=lambda x: x is None)
