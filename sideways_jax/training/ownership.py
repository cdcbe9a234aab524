"""Which module every leaf of an optimizer's state belongs to, found in the traced optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from sideways_jax.tools.programs import inline_calls
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.module_flow import Flow, Known, Place, Several, follow, size
from sideways_jax.training.optimizer_trace import trace


class Ownership(NamedTuple):
    """Where numbers in an optimizer's state come from, and which module each leaf belongs to."""

    modules: list[int]  # of every leaf of the parameters
    state: PyTree  # shapes of `tx.init(params)`
    new_state: PyTree  # shapes after an update
    places: list[Place]  # where the numbers of every leaf of the state come from
    homes: list[int | None]  # the module of every leaf of the state, None for none
    init: Flow  # params -> state
    update: Flow  # gradients, state, params -> updates, state
    has_effects: bool  # whether it prints, or calls functions of the host


def find_owners(tx: optax.GradientTransformation, params: tuple) -> Ownership:
    """Traces an optimizer, and follows all numbers from their modules into its state.

    A leaf of the state belongs to module i if it is computed, at the start or at an update, from
    numbers of module i and of no other module; single numbers of others may go into an array.
    A leaf that is computed from no module, or from single numbers of several, belongs to module i
    if it lies at the place of module i in a copy of the structure of the parameters, otherwise to
    no module: a count of steps, or a global norm.

    Args:
      tx: an optax transformation.
      params: D pytrees, or their shapes.

    Raises:
      ValueError: if a train step cannot call `tx`, as `optimizer_trace.trace` finds.
      One of `optimizer_trace.LOOKS_AT_VALUES`: if it cannot be traced.
    """
    traced = trace(tx, params)
    modules = [i for i, module in enumerate(params) for _ in jax.tree.leaves(module)]
    by_structure = _homes_by_structure(traced.state, params, modules)
    init, update = inline_calls(traced.init), inline_calls(traced.update)
    places = follow(init, modules).places
    sizes = [size(v) for v in init.outputs]
    while True:  # The next update reads what this one wrote into the state.
        homes = [
            place if isinstance(place, int) else home
            for place, home in zip(places, by_structure, strict=True)
        ]
        held = [
            place if home is None or isinstance(place, Several) else home
            for place, home in zip(places, homes, strict=True)
        ]
        flow = follow(update, [*modules, *held, *modules], [*modules, *homes])
        joined = list(map(_join, places, flow.places[len(modules) :], sizes))
        if joined == places:
            break
        places = joined
    return Ownership(
        modules,
        traced.state,
        traced.new_state,
        places,
        homes,
        follow(init, modules, homes),
        flow,
        bool(traced.init.effects or traced.update.effects),
    )


def _join(a: Place, b: Place, count: int) -> Place:
    """The place of a leaf of the state that comes from `a` at one update, from `b` at another."""
    if a == b or b == Known.FREE:
        return a
    if a == Known.FREE:
        return b
    for one in (a, b):
        if isinstance(one, Several):
            return one
    if count <= 1:
        return Known.MET
    modules = {one for one in (a, b) if isinstance(one, int)}
    if len(modules) > 1:
        return Several(f"arrays of modules {sorted(modules)} take turns")
    return Known.JOINED if Known.JOINED in (a, b) else modules.pop()


def _homes_by_structure(state: PyTree, params: tuple, modules: list[int]) -> list[int | None]:
    """For every leaf of the state, the module of its place in a copy of `params`, or None."""

    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    structure: Any = jax.tree.structure(params)

    def is_copy(node):
        return jax.tree.structure(node, is_leaf=is_masked) == structure

    homes: list[int | None] = []
    for node in jax.tree.leaves(state, is_leaf=is_copy):
        if is_copy(node):
            leaves = jax.tree.leaves(node, is_leaf=is_masked)
            homes += [i for i, leaf in zip(modules, leaves, strict=True) if not is_masked(leaf)]
        else:
            homes.append(None)
    return homes
