"""Splits a module into what runs over all frames at once and what is a recursion over frames.

Running statistics go from frame to frame, so that a module with a state looks sequential. But in
training only the cheap end of it is: batch normalisation uses the statistics of its own batch, and
the update of the running ones needs no more than their old value and a mean. `split_state` finds
that end in the module's jaxpr, for any module, so that `time_parallel` can compute the rest for
all frames at once and still leave exactly the state that one frame after the other leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend import core

from sideways_jax.jaxprs import inline_jit
from sideways_jax.network import Module
from sideways_jax.trees import PyTree, shape_of


class SplitModule(NamedTuple):
    """A module in two parts that together do what `module.apply` does."""

    # forward(params, state, x, rng) -> (y, residuals), which uses only those leaves of the state
    # that never change.
    forward: Callable[..., tuple[PyTree, list[jax.Array]]]
    # update(state, residuals) -> new_state; None if the state never changes.
    update: Callable[[PyTree, list[jax.Array]], PyTree] | None


def split_state(
    module: Module, params: PyTree, state: PyTree, x: PyTree, rng: jax.Array | None, *, train: bool
) -> SplitModule:
    """Splits `module.apply` at its state.

    Args:
      module: any module.
      params, state, x, rng: arguments of `apply`, or their shapes.
      train: fixed.

    Raises:
      ValueError: if the output depends on a part of the state that changes (a recurrent module,
        say): frames then have to follow one another.
    """

    def apply(params, state, x, rng):
        return module.apply(params, state, x, train=train, rng=rng)

    arguments = (params, state, x, rng)
    shapes = jax.tree.map(shape_of, arguments)
    closed, out_shape = jax.make_jaxpr(apply, return_shape=True)(*shapes)
    closed = inline_jit(closed)
    jaxpr = closed.jaxpr

    num_y, num_state = (len(jax.tree.leaves(tree)) for tree in out_shape)
    state_tree = jax.tree.structure(state)
    if jax.tree.structure(out_shape[1]) != state_tree:
        raise ValueError(
            f"the new state {jax.tree.structure(out_shape[1])} does not have the structure of the "
            f"old one, {state_tree}"
        )
    first_state = len(jax.tree.leaves(params))
    state_in = jaxpr.invars[first_state : first_state + num_state]
    y_out, state_out = jaxpr.outvars[:num_y], jaxpr.outvars[num_y:]
    changing = [old for old, new in zip(state_in, state_out, strict=True) if new is not old]

    if not changing:
        return SplitModule(lambda *args: (apply(*args)[0], []), None)

    late = set(changing)  # variables that wait for the state of the frame before
    late_eqns, early_eqns = [], []
    for eqn in jaxpr.eqns:
        is_late = any(isinstance(v, core.Var) and v in late for v in eqn.invars)
        (late_eqns if is_late else early_eqns).append(eqn)
        if is_late:
            late.update(eqn.outvars)
    if any(isinstance(v, core.Var) and v in late for v in y_out):
        raise ValueError(
            "its output depends on a state that changes from frame to frame, so that frames cannot "
            "be computed at the same time: use execution='scan'"
        )

    used = [v for eqn in late_eqns for v in eqn.invars] + list(state_out)
    residuals = list(dict.fromkeys(v for v in used if isinstance(v, core.Var) and v not in late))
    early = jaxpr.replace(eqns=early_eqns, outvars=[*y_out, *residuals])
    update = jaxpr.replace(
        invars=[*changing, *residuals],
        constvars=[],
        eqns=late_eqns,
        outvars=[new for old, new in zip(state_in, state_out, strict=True) if new is not old],
    )
    y_tree = jax.tree.structure(out_shape[0])
    is_changing = [new is not old for old, new in zip(state_in, state_out, strict=True)]

    def forward(params, state, x, rng):
        flat = jax.core.eval_jaxpr(early, closed.consts, *jax.tree.leaves((params, state, x, rng)))
        return jax.tree.unflatten(y_tree, flat[:num_y]), flat[num_y:]

    def update_state(state, residual_values):
        leaves = jax.tree.leaves(state)
        old = [leaf for leaf, changes in zip(leaves, is_changing, strict=True) if changes]
        new = iter(jax.core.eval_jaxpr(update, [], *old, *residual_values))
        leaves = [
            next(new).astype(leaf.dtype) if changes else leaf
            for leaf, changes in zip(leaves, is_changing, strict=True)
        ]
        return jax.tree.unflatten(state_tree, leaves)

    return SplitModule(forward, update_state)
