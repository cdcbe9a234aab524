"""The train state of a run with a program for every device: made, found and put in its place.

It has the structure that it has on one device, with a pytree for every module, so that a checkpoint
of either is one of the other. Only where arrays lie differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sideways_jax.device_programs.group_step import Carry
from sideways_jax.device_programs.optimizer import Owned, join_state, split_state
from sideways_jax.device_programs.optimizer import init_state as init_optimizer
from sideways_jax.device_programs.places import Places, groups_of, put_modules
from sideways_jax.device_programs.plan import Plan
from sideways_jax.rule.in_flight import following
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.division import Divided
from sideways_jax.training.train_state import TrainState, new_train_state


class Dispatched(ValueError):
    """Something was to be one program that is many."""


def check_dispatched(*arguments: PyTree) -> None:
    """Raises Dispatched inside a traced function: there is no single program to trace."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments)):
        raise Dispatched(
            "execution='program_per_device' dispatches a program for every device and cannot be "
            "part of another: call it without jax.jit. ProgramPerDevice(mesh, donate=True) does "
            "what donate_argnums=0 does elsewhere"
        )


def init_state(plan: Plan, optimizer: Divided, key: jax.Array) -> TrainState:
    """The train state that one device would make, made where it belongs; nothing in flight."""
    network, where = plan.task.network, plan.where
    params_key, rng = jax.random.split(key)
    params, state = [], []
    for place, group in zip(where.places, where.groups, strict=True):
        program = jax.jit(partial(_init_group, plan, group), out_shardings=place.whole)
        for one_params, one_state in program(jax.device_put(params_key, place.whole)):
            params.append(one_params)
            state.append(one_state)
    assert len(params) == network.depth
    opt_state = init_optimizer(plan, optimizer, tuple(params))
    new = new_train_state(tuple(params), tuple(state), opt_state, (), rng)
    top = where.places[-1].whole  # Where the loss and the outputs are, too.
    step, rng, frames = jax.device_put((new.step, new.rng, new.frames), top)
    return new._replace(step=step, rng=rng, frames=frames)


def _init_group(plan: Plan, group: tuple[int, ...], key: jax.Array) -> list[tuple]:
    network = plan.task.network
    inputs = network.inputs(plan.frame, plan.outputs)
    return [network.modules[i].init(jax.random.fold_in(key, i), inputs[i]) for i in group]


def sizes_of(places: Places, train_state: TrainState) -> tuple[int, ...] | None:
    """How many modules each place has in this train state; None if its arrays are elsewhere."""
    groups = groups_of(places, train_state.params)
    return None if groups is None else tuple(map(len, groups))


def owned_by_places(
    plan: Plan, optimizer: Divided, train_state: TrainState, *, donate: bool
) -> list[Owned]:
    """What every place has of the weights and the optimizer: programs may take it over.

    Args:
      plan, optimizer: of the run.
      train_state: its arrays may be anywhere.
      donate: whether those in their places are taken; otherwise copies are.
    """
    where = plan.where
    params = put_modules(where.places, where.groups, train_state.params)
    held = split_state(optimizer, where.places, train_state.opt_state)
    owned = [Owned(plan.own(n, params), leaves) for n, leaves in enumerate(held)]
    return owned if donate else [_copies(one) for one in owned]


def put_together(
    train_state: TrainState, optimizer: Divided, owned: Sequence[Owned], carries: Sequence[Carry],
    in_flight: Any, *, updates: int, num_frames: int,
) -> TrainState:  # fmt: skip
    """The train state after a call.

    Args:
      train_state: before it, with the counters on the place of the loss.
      optimizer: of the run.
      owned, carries: of every place, after it.
      in_flight: likewise.
      updates, num_frames: how many there were.
    """
    step, frames = _advanced(train_state.step, train_state.frames, updates, num_frames)
    return train_state._replace(
        step=step,
        params=tuple(one for each in owned for one in each.params),
        state=tuple(one for carry in carries for one in carry.state),
        opt_state=join_state(optimizer, [each.opt_state for each in owned]),
        in_flight=in_flight,
        frames=frames,
    )


@jax.jit
def _advanced(step: jax.Array, frames: Any, updates: jax.Array, num_frames: jax.Array) -> tuple:
    return step + updates, following(jnp.asarray(frames, jnp.int32), num_frames)


@jax.jit
def _copies(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
