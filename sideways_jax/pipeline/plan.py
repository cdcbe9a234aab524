"""The train state of a sharded run: vectors `[N, length]`, sharded over `depth` (`packing.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from sideways_jax.devices.layout import Layout, place
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.devices.placement import Groups
from sideways_jax.network.network import Network
from sideways_jax.pipeline import local_optimizer
from sideways_jax.pipeline.local_optimizer import Divided
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.train_state import TrainState


@partial(jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["groups"])
@dataclasses.dataclass(frozen=True)
class Placed:
    """What all devices hold of one kind (parameters, say), and whose it is."""

    vectors: Packed  # [N, length], sharded over `depth`
    groups: Groups  # the modules of every device; part of the structure, not a value


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
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(network.init, key, shape_of(frame))
    layout = place(network, params, state, shape_of(frame), mesh, groups)
    optimizer = local_optimizer.divide(tx, params, layout.groups)
    opt_packing = Packing.of([optimizer.state(n) for n in range(layout.num_devices)])
    return Plan(layout, params, state, optimizer.owner, opt_packing, optimizer)


def open_state(plan: Plan, train_state: TrainState) -> tuple[Packed, Packed, Packed]:
    """The vectors of parameters, state and state of the optimizer, `[N, length]`.

    Raises:
      ValueError: if the train state was made for other groups of modules, or other modules.
    """
    packings = {
        "params": plan.layout.params,
        "state": plan.layout.state,
        "opt_state": plan.opt_packing,
    }
    for name, packing in packings.items():
        held = getattr(train_state, name)
        expected = {key: (plan.layout.num_devices, n) for key, n in packing.lengths.items()}
        if (
            not isinstance(held, Placed)
            or held.groups != plan.layout.groups
            or {key: v.shape for key, v in held.vectors.items()} != expected
        ):
            made_for = f", but for {held.groups}" if isinstance(held, Placed) else ""
            raise ValueError(
                f"the {name} of this train state were not made for frames of this shape and groups "
                f"{plan.layout.groups} of modules{made_for}: make it with `init` of the same "
                "make_train_step, or put one with a pytree for every module on the mesh with "
                "step.per_module"
            )
    return tuple(getattr(train_state, name).vectors for name in packings)


def close_state(
    plan: Plan, train_state: TrainState, params: Packed, state: Packed, opt_state: Packed
) -> TrainState:
    """The train state with new vectors in the place of those that `open_state` gave."""
    new = (Placed(vectors, plan.layout.groups) for vectors in (params, state, opt_state))
    return train_state._replace(**dict(zip(("params", "state", "opt_state"), new, strict=True)))


def groups_of(train_state: TrainState, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How many modules each device has in this train state; `sizes` if it does not say.

    They were chosen when it was made, from the costs at the size that frames had then. A given
    choice stays as it is, so that a state made for another is noticed.
    """
    held = train_state.params
    if sizes is None and isinstance(held, Placed):
        return tuple(map(len, held.groups))
    return sizes
