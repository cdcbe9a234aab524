"""The train state of a sharded run: slots `[N, ...]`, sharded over `depth` (`packing.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from sideways_jax.devices.layout import Layout, place
from sideways_jax.devices.module_groups import Groups
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.network.module import key_shape
from sideways_jax.network.network import Network
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.division import Divided, divide
from sideways_jax.training.train_state import TrainState


@partial(
    jax.tree_util.register_dataclass, data_fields=["slots"], meta_fields=["groups", "signature"]
)
@dataclasses.dataclass(frozen=True)
class Placed:
    """What all devices hold of one kind (parameters, say), whose it is, and what lies there."""

    slots: Packed  # [N, ...], sharded over `depth`
    # Part of the structure, not values:
    groups: Groups  # the modules of every device
    signature: tuple[str, ...]  # `Packing.signature`


class Plan(NamedTuple):
    """All shapes of a sharded run."""

    layout: Layout
    params: tuple  # shapes, per module
    state: tuple
    owner: PyTree  # the module of every leaf of the optimizer's state over the whole tree, or None
    opt_packing: Packing  # of the state that each device has, with leaves of size 0 for the others
    optimizer: Divided  # what each device computes of it


def make_plan(
    network: Network,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    groups: Sequence[int] | None,
    frame: PyTree,
) -> Plan:
    """Only shapes are looked at; `frame` is that of a whole batch, or its shape.

    Raises:
      ValueError: if the modules or the batch do not go into the mesh, or for an optimizer that
        cannot be divided among devices.
    """
    params, state = jax.eval_shape(network.init, key_shape(), shape_of(frame))
    layout = place(network, params, state, shape_of(frame), mesh, groups)
    optimizer = divide(tx, params, layout.groups)
    states = [optimizer.state(n) for n in range(layout.num_devices)]
    opt_packing = Packing.of(states, matrices=True)
    return Plan(layout, params, state, optimizer.owner, opt_packing, optimizer)


def open_state(plan: Plan, train_state: TrainState) -> tuple[Packed, Packed, Packed]:
    """The slots of parameters, state and state of the optimizer, `[N, ...]`.

    Raises:
      ValueError: if the train state was made for other groups of modules, or for another network,
        optimizer or size of frames.
    """
    for name, packing in _packings(plan).items():
        held, groups = getattr(train_state, name), plan.layout.groups
        if not isinstance(held, Placed):
            problem = "do not lie on a mesh"
        elif held.groups != groups:
            problem = f"are not for groups {groups} of modules, but for {held.groups}"
        elif held.signature != packing.signature:
            problem = "were made for another network, optimizer or size of frames"
        else:
            continue
        raise ValueError(
            f"the {name} of this train state {problem}: make it with `init` of the same "
            "make_train_step, or put one with a pytree for every module on the mesh with "
            "step.per_module"
        )
    return train_state.params.slots, train_state.state.slots, train_state.opt_state.slots


def close_state(
    plan: Plan, train_state: TrainState, params: Packed, state: Packed, opt_state: Packed
) -> TrainState:
    """The train state with new slots in the place of those that `open_state` gave."""
    new: dict[str, Any] = {
        name: Placed(slots, plan.layout.groups, packing.signature)
        for (name, packing), slots in zip(
            _packings(plan).items(), (params, state, opt_state), strict=True
        )
    }
    return train_state._replace(**new)


def _packings(plan: Plan) -> dict[str, Packing]:
    return {
        "params": plan.layout.params,
        "state": plan.layout.state,
        "opt_state": plan.opt_packing,
    }


def groups_of(train_state: TrainState, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How many modules each device has in this train state; `sizes` if it does not say.

    They were chosen when it was made, from the costs at the size that frames had then. A given
    choice stays as it is, so that a state made for another is noticed.
    """
    held = train_state.params
    if sizes is None and isinstance(held, Placed):
        return tuple(map(len, held.groups))
    return sizes
