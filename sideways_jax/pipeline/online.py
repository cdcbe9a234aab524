"""Online learning on a mesh: weights and signals stay on their devices while the stream goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from sideways_jax.devices.exchange import key_of_replica, on_mesh, own
from sideways_jax.devices.layout import share_of
from sideways_jax.devices.mesh import DATA, DEPTH, check_mesh, data_axis
from sideways_jax.devices.packing import Packing
from sideways_jax.devices.replicas import mean_over_replicas
from sideways_jax.network.module import key_shape
from sideways_jax.pipeline.in_flight import (
    ShardedInFlight,
    check_signals,
    empty_pipeline,
    shardings,
    specs,
)
from sideways_jax.pipeline.plan import (
    Plan,
    close_state,
    groups_of,
    make_plan,
    open_state,
)
from sideways_jax.pipeline.sideways_stage import packing_of_kept, sideways_steps
from sideways_jax.pipeline.start import init_state
from sideways_jax.pipeline.update import update_on_device
from sideways_jax.rule.in_flight import Numbers, check_examples, following
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, first_of, masked_mean, shape_of
from sideways_jax.training.hold_back import check_separable
from sideways_jax.training.streams import (
    check_in_flight,
    check_stream,
    check_target,
    paired_in_stream,
    result,
    stream_metrics,
    stream_numbers,
)
from sideways_jax.training.train_state import Training, TrainState

SPEC: Any = PartitionSpec  # Any: records that hold arrays hold specifications too.


class _Run(NamedTuple):
    """What stays the same in all calls."""

    task: Task
    tx: optax.GradientTransformation
    mesh: Mesh
    groups: tuple[int, ...] | None
    update_every: int
    with_outputs: bool
    bubble: float

    def kept(self, plan: Plan, frame: PyTree) -> Packing:
        """How what modules keep lies in vectors; `frame` is a whole batch, or its shape."""
        share = share_of(shape_of(frame), self.mesh)
        return packing_of_kept(self.task, plan.layout, share, key_shape(), recompute=True)

    @property
    def replicas(self) -> int:
        """Along `data`."""
        return check_mesh(self.mesh)[0]


def make_training(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh,
    groups: tuple[int, ...] | None,
    update_every: int,
    with_outputs: bool,
    bubble: float = 0.0,
) -> Training:
    """A pipeline with an update every `update_every` frames, on a mesh.

    One program for a whole call: a scan over updates, in it one over the steps between two of them
    and then the optimizer, on the device of the parameters.

    Args:
      task, tx: what is trained, and by which transformation.
      mesh, groups: where.
      update_every: frames from one update to the next.
      with_outputs: whether `train_step` returns `(train_state, metrics, Outputs)`.
      bubble: the value of the padding of signals; tests put NaN there.
    """
    run = _Run(task, tx, mesh, groups, update_every, with_outputs, bubble)

    def init(key, frame, target=None):
        check_target(task.target, target)
        plan = make_plan(task.network, tx, mesh, groups, frame)
        check_separable(plan.optimizer.owners)
        shapes = task.network.activation_shapes(plan.params, plan.state, frame)
        batch = check_examples(frame, shapes)
        train_state = init_state(task.network, plan, mesh, key, frame)

        def empty():
            carried = shape_of(target) if task.target == "origin" else None
            packing = run.kept(plan, frame)
            return empty_pipeline(task, plan.layout, packing, run.replicas, batch, carried)

        make = jax.jit(empty, out_shardings=shardings(mesh))
        return train_state._replace(in_flight=make())

    @jax.jit
    def train_step(train_state, frames, targets, reset=None):
        return _train_step(run, train_state, frames, targets, reset)

    return Training(init, train_step)


def _train_step(run: _Run, train_state: TrainState, frames, targets, reset):
    check_in_flight(train_state, ShardedInFlight)
    batch = train_state.in_flight.activation_frames.shape[1]
    reset = check_stream(batch, frames, targets, reset, run.update_every)
    sizes = groups_of(train_state, run.groups)
    plan = make_plan(run.task.network, run.tx, run.mesh, sizes, first_of(frames))
    held = open_state(plan, train_state)
    packing = run.kept(plan, first_of(frames))
    check_signals(run.task, plan.layout, packing, run.replicas, train_state.in_flight)
    first_frame_id = jnp.asarray(train_state.frames, jnp.int32)
    in_flight, numbers = stream_numbers(run.task, train_state.in_flight, reset, first_frame_id)
    in_flight, paired = paired_in_stream(in_flight, targets)
    inputs = jax.tree.map(
        lambda x: x.reshape((-1, run.update_every, *x.shape[1:])), (frames, paired, numbers)
    )
    held, shown, signals, kept, norms = _on_all_devices(run, plan)(
        *held, in_flight.signals, in_flight.kept, inputs, train_state.rng
    )
    num_frames = len(reset)
    outputs, losses, by_example = jax.tree.map(
        lambda x: x[-1].reshape((num_frames, *x.shape[3:])), shown
    )
    shown_frames = numbers.frames[:, -1]
    losses = jax.vmap(masked_mean)(losses, shown_frames >= 0)
    metrics = stream_metrics(losses, shown_frames, by_example)
    metrics["grad_norm"] = jnp.mean(norms)
    train_state = train_state._replace(
        step=train_state.step + num_frames // run.update_every,
        in_flight=jax.lax.with_sharding_constraint(
            in_flight._replace(signals=signals, kept=kept), shardings(run.mesh)
        ),
        frames=following(first_frame_id, num_frames),
    )
    train_state = close_state(plan, train_state, *held)
    return result(train_state, metrics, outputs, shown_frames, run.with_outputs)


def _on_all_devices(run: _Run, plan: Plan) -> Callable:
    """The function `(params, state, opt_state, signals, kept, inputs, rng)` over the mesh.

    Its `inputs` are frames, targets by computation step, and `Numbers`, each with the axes
    `[updates, update_every]`; it gives `(held, shown, signals, kept, norms)`.
    """

    def on_device(params, state, opt_state, signals, kept, inputs, rng):
        signals, rows = jax.tree.map(lambda x: x[0, 0], (signals, kept.rows))
        rng = key_of_replica(rng, run.replicas)
        (*held, signals, kept), (shown, norms) = jax.lax.scan(
            lambda carry, one: _one_update(run, plan, carry, one, rng),
            (*own((params, state, opt_state)), signals, kept._replace(rows=rows)),
            inputs,
        )
        held, shown = jax.tree.map(lambda x: x[None], (tuple(held), shown))
        signals, rows = jax.tree.map(lambda x: x[None, None], (signals, kept.rows))
        return held, shown, signals, kept._replace(rows=rows), norms

    data, in_flight = data_axis(run.mesh), specs(data_axis(run.mesh))
    signals, kept = in_flight.signals, in_flight.kept
    by_device = SPEC(DEPTH)
    steps, shown = SPEC(None, None, data), SPEC(DEPTH, None, None, data)
    by_example = SPEC(None, None, None, data)
    numbers = Numbers(by_example, by_example, SPEC(), SPEC())
    return on_mesh(
        run.mesh,
        on_device,
        (by_device, by_device, by_device, signals, kept, (steps, steps, numbers), SPEC()),
        (by_device, shown, signals, kept, SPEC()),
    )


def _one_update(run: _Run, plan: Plan, carry: tuple, inputs: tuple, rng: jax.Array):
    """The steps between two updates and the second of these, on one device."""
    params, state, opt_state, signals, kept = carry
    frames, targets, numbers = inputs
    sums, signals, kept = sideways_steps(
        run.task, plan.layout, params, state, signals, frames, targets, numbers,
        rng=rng, keep_outputs=run.with_outputs, replicas=run.replicas, bubble=run.bubble,
        kept=kept,
    )  # fmt: skip
    num_grads = (numbers.origins >= 0).sum((0, 2), dtype=jnp.int32)
    grads, state = sums.grads, sums.state
    if run.replicas > 1:
        grads, num_grads = jax.lax.psum((grads, num_grads), DATA)
        state = mean_over_replicas(state)
    # The loss is a mean over this share of the batch; the gradient one over valid examples.
    params, opt_state, norm = update_on_device(
        plan, params, opt_state, grads, num_grads, scale=numbers.frames.shape[-1], hold=True
    )
    shown = sums.outputs, sums.losses, sums.metrics
    return (params, state, opt_state, signals, kept), (shown, norm)
