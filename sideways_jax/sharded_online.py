"""Online learning on a mesh: weights and signals stay on their devices while the stream goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from sideways_jax import sharded_in_flight, sharded_state
from sideways_jax.depth_sharded import reduced
from sideways_jax.episode import LossFn
from sideways_jax.in_flight import InFlight, restart, tick
from sideways_jax.layout import DATA, DEPTH
from sideways_jax.mesh import check_mesh, data_axis
from sideways_jax.network import Network
from sideways_jax.online import Outputs, check_stream, check_target, stream_metrics
from sideways_jax.sharded_in_flight import ShardedInFlight
from sideways_jax.sharded_sideways import Clock, sideways_steps
from sideways_jax.trees import PyTree, first_of, masked_mean, shape_of

SPEC = PartitionSpec


def make_train_step(
    network: Network,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh,
    groups: Sequence[int] | None,
    update_every: int,
    target: str,
    metrics_fn: Callable | None,
    with_outputs: bool,
    bubble: float = 0.0,
) -> tuple[Callable, Callable]:
    """`step.make_train_step` with `update_every` and `execution="depth_sharded"`.

    One program for a whole call: a scan over updates, in it one over the steps between two of them
    and then the optimiser, on the device of the parameters.

    Args:
      network, loss_fn, tx, mesh, groups, update_every, target, metrics_fn, with_outputs: see there.
      bubble: the value of the padding of signals; tests put NaN there.
    """
    replicas, _ = check_mesh(mesh)
    data = data_axis(mesh)
    in_flight_specs = sharded_in_flight.specs(data)

    def init(key, frame, target_like=None):
        check_target(target, target_like)
        plan = sharded_state.plan(network, tx, mesh, groups, frame)
        train_state = sharded_state.init(network, tx, plan, mesh, key, frame)

        def empty():
            carried = shape_of(target_like) if target == "origin" else None
            batch = jax.tree.leaves(frame)[0].shape[0]
            return sharded_in_flight.empty(plan.layout, replicas, batch, carried)

        make = jax.jit(empty, out_shardings=sharded_in_flight.shardings(mesh))
        return train_state._replace(in_flight=make())

    def train_step(train_state, frames, targets, reset=None):
        plan = sharded_state.plan(network, tx, mesh, groups, first_of(frames))
        sharded_state.check_lengths(plan, train_state)
        if not isinstance(train_state.in_flight, ShardedInFlight):
            raise ValueError(
                "this train state has nothing in flight: update_every carries the pipeline on, so "
                "make it with `init` of the same make_train_step"
            )
        batch = train_state.in_flight.activation_frames.shape[1]
        reset = check_stream(network, batch, frames, targets, reset, update_every)
        num_frames = reset.shape[0]
        frame_id = train_state.step * update_every
        in_flight, clock = _clock(train_state.in_flight, reset, frame_id)
        in_flight, paired = _pair(in_flight, targets)

        def one_update(carry, inputs, rng):
            params, state, opt_state, signals = carry
            frames, targets, clock = inputs
            sums, signals = sideways_steps(
                network, loss_fn, plan.layout, params, state, signals, frames, targets, clock,
                train=True, rng=rng, bubble=bubble,
            )  # fmt: skip
            # The loss is a mean over this share of the batch; the gradient one over valid examples.
            grads = {name: v * (batch // replicas) for name, v in sums.grads.items()}
            num_grads = (clock.backward >= 0).sum((0, 2), dtype=jnp.int32)
            state = sums.state
            if replicas > 1:
                grads, num_grads = jax.lax.psum((grads, num_grads), DATA)
                state = reduced(state)
            params, opt_state, norm = sharded_state.update_on_device(
                tx, plan, params, opt_state, grads, num_grads, hold=True
            )
            return (params, state, opt_state, signals), (sums.outputs, sums.losses, norm)

        def on_device(params, state, opt_state, signals, inputs, rng):
            own = jax.tree.map(lambda x: x[0], (params, state, opt_state))
            signals = jax.tree.map(lambda x: x[0, 0], signals)
            if replicas > 1:  # Masks of dropout are drawn per replica.
                rng = jax.random.fold_in(rng, jax.lax.axis_index(DATA))
            (*own, signals), (outputs, losses, norms) = jax.lax.scan(
                lambda carry, one: one_update(carry, one, rng), (*own, signals), inputs
            )
            rows = jax.tree.map(lambda x: x[None], (*own, outputs, losses))
            return *rows, jax.tree.map(lambda x: x[None, None], signals), norms

        by_device = SPEC(DEPTH)
        steps, shown = SPEC(None, None, data), SPEC(DEPTH, None, None, data)
        numbers = SPEC(None, None, None, data)
        inputs = jax.tree.map(
            lambda x: x.reshape((-1, update_every, *x.shape[1:])), (frames, paired, clock)
        )
        *new, outputs, losses, signals, norms = sharded_state.on_mesh(
            mesh,
            on_device,
            (
                by_device, by_device, by_device, in_flight_specs.signals,
                (steps, steps, Clock(numbers, numbers, SPEC(), SPEC())), SPEC(),
            ),
            (by_device, by_device, by_device, shown, shown, in_flight_specs.signals, SPEC()),
        )(
            train_state.params, train_state.state, train_state.opt_state, in_flight.signals,
            inputs, train_state.rng,
        )  # fmt: skip
        outputs, losses = jax.tree.map(
            lambda x: x[-1].reshape((num_frames, *x.shape[3:])), (outputs, losses)
        )
        shown_frames = clock.forward[:, -1]
        losses = jax.vmap(masked_mean)(losses, shown_frames >= 0)
        metrics = stream_metrics(outputs, paired, losses, shown_frames, metrics_fn)
        metrics["grad_norm"] = jnp.mean(norms)
        params, state, opt_state = new
        in_flight = jax.lax.with_sharding_constraint(
            in_flight._replace(signals=signals), sharded_in_flight.shardings(mesh)
        )
        train_state = train_state._replace(
            step=train_state.step + num_frames // update_every,
            params=params,
            state=state,
            opt_state=opt_state,
            in_flight=in_flight,
        )
        if with_outputs:
            return train_state, metrics, Outputs(outputs, shown_frames)
        return train_state, metrics

    return init, train_step


def _clock(
    in_flight: ShardedInFlight, reset: jax.Array, first_frame_id: jax.Array
) -> tuple[ShardedInFlight, Clock]:
    """What every module works on while frames with these resets, `[K, B]`, come in."""

    def body(numbers, inputs):
        frame_id, reset = inputs
        numbers, *both = tick(restart(numbers, reset), jnp.full(reset.shape, frame_id))
        return numbers, both

    frame_ids = first_frame_id + jnp.arange(len(reset), dtype=jnp.int32)
    before = in_flight.activation_frames, in_flight.pseudo_gradient_frames
    numbers, (forward, backward) = jax.lax.scan(
        body, InFlight((), (), *before, ()), (frame_ids, reset)
    )
    clock = Clock(forward, backward, (forward >= 0).all(-1), (backward >= 0).any(-1))
    moved = in_flight._replace(
        activation_frames=numbers.activation_frames,
        pseudo_gradient_frames=numbers.pseudo_gradient_frames,
    )
    return moved, clock


def _pair(in_flight: ShardedInFlight, targets: PyTree) -> tuple[ShardedInFlight, PyTree]:
    """Targets `[K, ...]` by the step of the output they belong to; the last D-1 are carried on."""
    late = len(in_flight.targets)
    if not late:
        return in_flight, targets
    line = jax.tree.map(
        lambda new, *old: jnp.concatenate([jnp.stack(old[::-1]), new]), targets, *in_flight.targets
    )
    newest = tuple(jax.tree.map(lambda x, i=i: x[-1 - i], line) for i in range(late))
    return in_flight._replace(targets=newest), jax.tree.map(lambda x: x[:-late], line)
