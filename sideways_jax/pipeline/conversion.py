"""A train state on a mesh, and the one with a pytree for every module: what a checkpoint holds.

No device gets more than its own modules on the way: what leaves the mesh goes to host memory, and
what comes to it is put where it belongs module by module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.layout import share_of
from sideways_jax.devices.mesh import DEPTH, check_mesh, grid
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.network.module import key_shape
from sideways_jax.network.network import Network
from sideways_jax.pipeline.in_flight import (
    check_signals,
    shardings,
    signals_from_modules,
    signals_to_modules,
)
from sideways_jax.pipeline.plan import Plan, close_state, groups_of, make_plan, open_state
from sideways_jax.pipeline.sideways_stage import packing_of_kept
from sideways_jax.rule.fifo import Remembered, stashes_weights
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.train_state import TrainState


def per_module(
    network: Network,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    frame: PyTree,
    groups: Sequence[int] | None = None,
) -> tuple[Callable[[TrainState], TrainState], Callable[[TrainState], TrainState]]:
    """Conversions of a sharded `TrainState` to and from the one with a pytree for every module.

    Args:
      network, tx, mesh, groups: those that `make_train_step` was called with.
      frame: the batch of frames, or its shape, that `init` was called with.

    Returns:
      `(to_modules, from_modules)`. The first gives parameters, state and state of the optimizer in
      host memory (with several processes: arrays that every device has, since no process holds all
      of them). The second puts each module on its device. What is in flight in an online run is
      converted as well.
    """
    groups = None if groups is None else tuple(groups)
    replicas, _ = check_mesh(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def packing_of(task: Task, plan: Plan) -> Packing:
        share = share_of(shape_of(frame), mesh)
        return packing_of_kept(task, plan.layout, share, key_shape(), recompute=True)

    def to_modules(train_state: TrainState) -> TrainState:
        sizes = groups_of(train_state, groups)
        plan = make_plan(network, tx, mesh, sizes, frame)
        held = open_state(plan, train_state)
        in_flight = train_state.in_flight
        if in_flight:
            task = Task(network, _no_loss, rule=in_flight.made_for.value[0])
            packing = packing_of(task, plan)
            check_signals(task, plan.layout, packing, replicas, in_flight)
            in_flight = jax.jit(
                partial(signals_to_modules, task, plan.layout, packing), out_shardings=everywhere
            )(in_flight)
        if jax.process_count() > 1:
            params, state, opt_state = jax.jit(partial(_modules, plan), out_shardings=everywhere)(
                *held
            )
        else:
            params, state, opt_state = _modules(plan, *jax.tree.map(_on_host, held))
        # Copies: the next train step may take this state apart.
        counters = train_state.step, train_state.rng, train_state.frames
        step, rng, frames = jax.tree.map(jnp.copy, counters)
        return TrainState(step, params, state, opt_state, in_flight, rng, frames)

    def from_modules(train_state: TrainState) -> TrainState:
        plan = make_plan(network, tx, mesh, groups, frame)
        in_flight = train_state.in_flight
        if in_flight:
            exact = isinstance(in_flight, Remembered)
            if exact and any(map(stashes_weights, in_flight.fifos)):
                raise ValueError(
                    "this train state keeps the weights of past forward passes, which a mesh does "
                    "not: go on with execution=Scan(stash_weights=True), or train without them"
                )
            task = Task(network, _no_loss, "pipelined_backprop" if exact else "sideways")
            packing = packing_of(task, plan)
            in_flight = jax.jit(
                partial(signals_from_modules, task, plan.layout, packing, replicas),
                out_shardings=shardings(mesh),
            )(jax.device_put(in_flight, everywhere))
        rows = [partial(_row, plan, train_state, n) for n in range(plan.layout.num_devices)]
        counters = (train_state.step, train_state.rng, jnp.asarray(train_state.frames, jnp.int32))
        step, rng, frames = jax.device_put(counters, everywhere)
        train_state = train_state._replace(step=step, rng=rng, frames=frames, in_flight=in_flight)
        return close_state(plan, train_state, *_put(mesh, rows))

    return to_modules, from_modules


def _no_loss(output: PyTree, target: PyTree) -> jax.Array:
    raise NotImplementedError("conversions compute no loss")


def _modules(plan: Plan, params: Packed, state: Packed, opt_state: Packed) -> tuple:
    """A pytree for every module, out of vectors `[N, length]`; slices of what it is given."""
    groups = plan.layout.groups
    device_of = {i: n for n, group in enumerate(groups) for i in group}

    def unpacked(packing: Packing, vectors: Packed) -> list[PyTree]:
        return [
            packing.unpack(n, {name: rows[n] for name, rows in vectors.items()})
            for n in range(len(groups))
        ]

    def joined(packing, vectors):
        return tuple(module for group in unpacked(packing, vectors) for module in group)

    def owned(module, *leaves):
        return leaves[0 if module is None else device_of[module]]

    views = unpacked(plan.opt_packing, opt_state)
    return (
        joined(plan.layout.params, params),
        joined(plan.layout.state, state),
        jax.tree.map(owned, plan.owner, *views, is_leaf=_is_none),
    )


def _row(plan: Plan, train_state: TrainState, n: int, device: jax.Device) -> tuple:
    """The vectors of device n, made on that device out of its own modules alone."""
    group = plan.layout.groups[n]

    def own(module, leaf, shape):
        there = module is None or module in group
        return leaf if there else np.zeros(shape.shape, shape.dtype)

    modules = (
        tuple(train_state.params[i] for i in group),
        tuple(train_state.state[i] for i in group),
        jax.tree.map(
            own, plan.owner, train_state.opt_state, plan.opt_packing.trees[n], is_leaf=_is_none
        ),
    )
    packings = plan.layout.params, plan.layout.state, plan.opt_packing

    @jax.jit
    def pack(modules):
        packed = (packing.pack(n, one) for packing, one in zip(packings, modules, strict=True))
        return jax.tree.map(lambda x: x[None], tuple(packed))

    return pack(jax.device_put(jax.tree.map(_local, modules), device))


def _put(mesh: Mesh, rows: Sequence[Callable[[jax.Device], tuple]]) -> tuple:
    """Arrays sharded over `depth`, out of the rows that this process makes on its devices."""
    made = {
        device: row(device)
        for replica in grid(mesh)
        for device, row in zip(replica, rows, strict=True)
        if device.process_index == jax.process_index()
    }
    sharding = NamedSharding(mesh, PartitionSpec(DEPTH))

    def join(*pieces):
        shape = (len(rows), *pieces[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(pieces))

    return jax.tree.map(join, *made.values())


def _on_host(x: jax.Array) -> np.ndarray | jax.Array:
    """In host memory; a key stays an array of JAX, which NumPy has not."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def _local(x):
    """An array of this process alone; `x` if it is one."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x.addressable_data(0)
    return x


def _is_none(x) -> bool:
    return x is None
