"""The programs of an execution, compiled for devices that are not there."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from experiments.benchmarks.chips import clock
from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.chips.topologies import Topology
from experiments.benchmarks.rig.programs import loss_fn
from sideways_jax import make_mesh, step
from sideways_jax.device_programs import clips
from sideways_jax.device_programs.group_step import Given
from sideways_jax.device_programs.links import hears_frame
from sideways_jax.device_programs.optimizer import Owned, Update, programs_of
from sideways_jax.device_programs.plan import Plan, divided, initial_shapes, make_plan
from sideways_jax.device_programs.steps import carry_sharding, make_steps
from sideways_jax.devices.mesh import DATA, grid
from sideways_jax.network.module import key_shape
from sideways_jax.network.network import Network
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, first_of

Compiled = jax.stages.Compiled


class Clip(NamedTuple):
    """The shapes of a call."""

    frames: jax.ShapeDtypeStruct  # [K, B, ...]
    targets: jax.ShapeDtypeStruct  # [K, B, ...]


class Program(NamedTuple):
    """One program, of one device or of several."""

    compiled: Compiled
    devices: list[jax.Device]  # as the program counts them


class DeviceProgram(NamedTuple):
    """What one device of a program per device runs."""

    step: Compiled  # with the update in it on a stream
    update: Compiled | None  # after a clip
    bytes_sent: int  # by a step, to other devices, of the share of one replica
    messages: int  # of a step
    hops: int  # to the farthest of the devices that hear it


def optimizer() -> optax.GradientTransformation:
    """SGD with momentum: one more array for each of the parameters."""
    return optax.sgd(0.1, momentum=0.9)


def clip_of(frames: int, batch: int, size: int) -> Clip:
    """Frames as a data set gives them, uint8, and a label for each."""
    return Clip(
        jax.ShapeDtypeStruct((frames, batch, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((frames, batch), jnp.int32),
    )


def one_program(case: Case, network: Network, clip: Clip, topology: Topology) -> Program:
    """The train step, which is one program, donating its train state."""
    mesh, where = _where(case, topology.devices)
    init, train_step = step.make_train_step(
        network, loss_fn, optimizer(), rule=case.rule, execution=case.execution,
        mesh=mesh, schedule=case.schedule, update_every=1 if case.is_stream else None,
    )  # fmt: skip
    frame = first_of(clip.frames)
    train_state = jax.eval_shape(partial(init, frame=frame), jax.random.key(0))
    whole, steps = where
    if case.execution != "depth_sharded":  # There the program says where the train state lies.
        train_state = _placed(train_state, whole)
    jitted = jax.jit(train_step, donate_argnums=0)
    lowered = jitted.lower(train_state, *_placed(tuple(clip), steps))
    compiled = lowered.compile(compiler_options=dict(topology.options))
    return Program(compiled, topology.devices[:1] if mesh is None else list(mesh.devices.flat))


def _where(case: Case, devices: list[jax.Device]) -> tuple[Mesh | None, tuple[Sharding, Sharding]]:
    """The mesh, if there is one, where a train state lies, and where a clip `[K, B, ...]`."""
    if case.depth * case.data == 1 and case.execution != "depth_sharded":
        here = SingleDeviceSharding(devices[0])
        return None, (here, here)
    mesh = make_mesh(case.depth, case.data, devices)
    return mesh, (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(None, DATA)),
    )


def device_programs(
    case: Case, network: Network, clip: Clip, topology: Topology,
    tx: optax.GradientTransformation | None = None,
) -> list[DeviceProgram]:  # fmt: skip
    """The programs of every device, with Sideways; `tx` is `optimizer()` by default."""
    tx, num_frames = tx or optimizer(), clip.frames.shape[0]
    frame, target = first_of(tuple(clip))
    params, state = initial_shapes(network, frame)
    mesh = make_mesh(case.depth, case.data, topology.devices)
    plan = make_plan(
        Task(network, loss_fn, case.rule), params, state, frame, target, mesh, None, key_shape()
    )
    every = 1 if case.is_stream else num_frames
    batch = frame.shape[0]
    update = Update(
        plan, divided(plan, tx), every, scale=batch if case.is_stream else 1, hold=case.is_stream
    )
    steps = make_steps(plan, partial(clips.start, plan, False), update)
    finish = programs_of(update, carry_sharding).finish
    opt_state = jax.tree.leaves(jax.eval_shape(tx.init, params))
    numbers = jax.ShapeDtypeStruct(
        (2, num_frames, network.depth, *((batch,) if case.is_stream else ())), jnp.int32
    )
    result = []
    for n, place in enumerate(plan.where.places):
        given = _given(plan, n, clip, numbers)
        carry, below, above = jax.eval_shape(steps.start[n], given, plan.own(n, state))
        carry = _placed(carry, carry_sharding(plan, n))
        signals = _placed((below, above), place.batch)
        leaves = [opt_state[k] for k in update.optimizer.held(n)]
        owned = _placed(Owned(plan.own(n, params), leaves), place.whole)
        if case.is_stream:
            program, arguments = steps.step_and_update[n], (owned, carry, *signals, given)
        else:
            program, arguments = steps.step[n], (owned.params, carry, *signals, given)
        sent = jax.tree.leaves(jax.eval_shape(program, *arguments)[-2:])
        compiled = [_compiled(program, arguments, topology), None]
        if not case.is_stream:
            compiled[1] = _compiled(finish[n], (owned, carry, []), topology)
        size = sum(x.size * x.dtype.itemsize for x in sent) // case.data
        far = [hops(row[n], row[b]) for b in plan.where.links.above(n) for row in grid(mesh)]
        result.append(DeviceProgram(*compiled, size, len(sent), max(far, default=0)))
    return result


def hops(one: jax.Device, other: jax.Device) -> int:
    """How far two chips are from each other; 1 where nothing is known about that."""
    found = [getattr(device, "coords", None) for device in (one, other)]
    return clock.hops(*found) if all(found) else 1


def _compiled(program: Any, arguments: tuple, topology: Topology) -> Compiled:
    return program.lower(*arguments).compile(compiler_options=dict(topology.options))


def _given(plan: Plan, n: int, clip: Clip, numbers: jax.ShapeDtypeStruct) -> Given:
    """The shapes of what device n has of the clip."""
    place = plan.where.places[n]
    hears = hears_frame(plan.task.network.wiring, plan.where.groups[n])
    return Given(
        _placed(clip.frames, place.steps) if hears else (),
        _placed(clip.targets, place.steps) if n == plan.top else (),
        *_placed((numbers, plan.rng), place.whole),
    )


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """The shapes with where they lie: one sharding for all, or for parts of the tree."""

    def place(sharding, part):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        )

    return jax.tree.map(place, shardings, tree, is_leaf=lambda x: isinstance(x, Sharding))
