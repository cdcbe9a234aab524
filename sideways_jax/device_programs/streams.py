"""Training on streams with a program for every device: weights change while signals are in flight.

What is in flight lies, between two calls, on the place of the module that sent it.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sideways_jax.device_programs.clips import Options, closed, opened
from sideways_jax.device_programs.group_step import (
    Carry,
    Given,
    Shown,
    Within,
    room_to_show,
    start_carry,
)
from sideways_jax.device_programs.links import deliver_up, heard_within
from sideways_jax.device_programs.optimizer import Update
from sideways_jax.device_programs.places import places_of, put, put_modules
from sideways_jax.device_programs.plan import Plan, divided, initial_shapes, make_plan
from sideways_jax.device_programs.start import (
    check_dispatched,
    init_state,
    owned_by_places,
    put_together,
    sizes_of,
)
from sideways_jax.device_programs.steps import (
    Arrived,
    carry_sharding,
    give,
    make_steps,
    run_steps,
)
from sideways_jax.devices.routes import added
from sideways_jax.network.checks import check_tuples
from sideways_jax.rule.fifo import Remembered, stashes_weights
from sideways_jax.rule.in_flight import InFlight, init_in_flight, no_frames
from sideways_jax.rule.rule import empty_fifos
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


def make_training(
    task: Task,
    tx: optax.GradientTransformation,
    options: Options,
    *,
    update_every: int,
    with_outputs: bool,
) -> Training:
    """A pipeline with an update every `update_every` frames.

    Args:
      task, tx: what is trained, and by which transformation.
      options: where.
      update_every: frames from one update to the next.
      with_outputs: whether `train_step` returns `(train_state, metrics, Outputs)`.
    """
    places = places_of(options.mesh)
    keeps = task.remembers
    kind = Remembered if keeps else InFlight

    init = partial(_init, task, tx, options)

    @functools.cache
    def programs_for(sizes, shapes):
        params, state, frame, target, rng = opened(shapes)
        plan = make_plan(task, params, state, frame, target, options.mesh, sizes, rng)
        optimizer = divided(plan, tx)
        batch = jax.tree.leaves(frame)[0].shape[0]
        update = Update(plan, optimizer, update_every, scale=batch, hold=True)
        start = partial(_start, plan, update_every, with_outputs)
        finish = [jax.jit(_finish, out_shardings=place.batch) for place in places]
        return make_steps(plan, start, update), finish

    summary = jax.jit(_summary)
    in_program = jax.jit(partial(_numbers, task))

    def number(in_flight, reset, frames):  # Without the signals, which are elsewhere.
        bare = in_flight._replace(activations=(), pseudo_gradients=(), targets=())
        return in_program(bare, reset, frames)

    def train_step(train_state, frames, targets, reset=None):
        check_dispatched(train_state, frames, targets, reset)
        check_in_flight(train_state, kind)
        check_tuples(task.depth, train_state.params, train_state.state)
        in_flight, fifos = _apart(train_state.in_flight)
        batch = in_flight.activation_frames.shape[1]
        reset = check_stream(batch, frames, targets, reset, update_every)
        steps, finish = programs_for(
            options.sizes or sizes_of(places, train_state),
            closed(
                train_state.params, train_state.state, *first_of(shape_of((frames, targets))),
                train_state.rng,
            ),
        )  # fmt: skip
        plan, optimizer, top = steps.plan, steps.update.optimizer, places[-1]
        counters = put((train_state.step, train_state.frames), top.whole)
        train_state = train_state._replace(step=counters[0], frames=counters[1])
        in_flight, fifos = put_in_flight(plan, in_flight, fifos)
        after, numbers = number(in_flight, jax.device_put(reset, top.whole), counters[1])
        carried, paired = _pair(in_flight.targets, jax.device_put(targets, top.steps))
        given = give(plan, frames, paired, numbers, train_state.rng)
        owned = owned_by_places(plan, optimizer, train_state, donate=options.donate)
        state = put_modules(places, plan.where.groups, train_state.state)
        carries, arrived = _begin(steps, state, in_flight, fifos, given)
        owned, carries, arrived, ups = run_steps(steps, owned, carries, arrived, given)
        signals = _end(finish, carries, arrived, ups)
        held: Any = InFlight(signals[0], signals[1], after[0], after[1], carried)
        if keeps:
            held = Remembered(held, tuple(one for carry in carries for one in carry.fifos))
        squares = jax.device_put([carry.squares for carry in carries], top.whole)
        shown, shown_frames = carries[-1].shown, given[-1].numbers[0, :, -1]
        metrics = summary(shown._replace(outputs=()), shown_frames, squares)
        train_state = put_together(
            train_state, optimizer, owned, carries, held,
            updates=len(reset) // update_every, num_frames=len(reset),
        )  # fmt: skip
        return result(train_state, metrics, shown.outputs, shown_frames, with_outputs)

    return Training(init, train_step)


def _init(
    task: Task, tx: optax.GradientTransformation, options: Options, key: jax.Array, frame: PyTree,
    target: PyTree = None,
) -> TrainState:  # fmt: skip
    """The first train state, on its places, with nothing in flight."""
    check_target(task.target, target)
    params, state = initial_shapes(task.network, frame)
    plan = make_plan(task, params, state, frame, target, options.mesh, options.sizes, shape_of(key))
    optimizer = divided(plan, tx)
    check_separable(optimizer.owners)
    train_state = init_state(plan, optimizer, key)
    variables = plan.params, plan.state, plan.frame
    in_flight = init_in_flight(
        task.network, *variables, target, target_alignment=task.target, per_example=True
    )
    fifos: tuple = ()
    if task.remembers:
        fifos = empty_fifos(task.network, *variables, rng=train_state.rng)
    in_flight, fifos = put_in_flight(plan, in_flight, fifos)
    held: Any = Remembered(in_flight, fifos) if task.remembers else in_flight
    return train_state._replace(in_flight=held)


def _apart(in_flight: InFlight | Remembered) -> tuple[InFlight, tuple]:
    """What is in flight, and what modules keep.

    Raises:
      ValueError: if they keep weights, which is for one device.
    """
    if isinstance(in_flight, InFlight):
        return in_flight, ()
    if any(map(stashes_weights, in_flight.fifos)):
        raise ValueError(
            "this train state keeps the weights of past forward passes, which a program per "
            "device does not: go on with execution=Scan(stash_weights=True), or train without"
        )
    return in_flight


def _numbers(task: Task, in_flight: InFlight, reset: jax.Array, frames: jax.Array) -> tuple:
    """Frame numbers after the call, and those of every step, int32 `[2, K, D, B]`."""
    after, numbers = stream_numbers(task, in_flight, reset, jnp.asarray(frames, jnp.int32))
    moved = after.activation_frames, after.pseudo_gradient_frames
    return moved, jnp.stack([numbers.frames, numbers.origins])


@jax.jit
def _pair(carried: tuple, targets: PyTree) -> tuple[tuple, PyTree]:
    """The targets to be carried on, and those of now by the step of their output."""
    nothing = no_frames(1)
    in_flight, paired = paired_in_stream(InFlight((), (), nothing, nothing, carried), targets)
    return in_flight.targets, paired


def _summary(shown: Shown, frames: jax.Array, squares: list[jax.Array]) -> dict[str, jax.Array]:
    losses = jax.vmap(masked_mean)(shown.losses, frames >= 0)
    metrics = stream_metrics(losses, frames, shown.metrics or {})
    metrics["grad_norm"] = jnp.mean(jnp.sqrt(sum(squares[1:], squares[0])))
    return metrics


def put_in_flight(plan: Plan, in_flight: InFlight, fifos: tuple) -> tuple[InFlight, tuple]:
    """What is in flight, and what modules keep, on the places of their modules."""
    places = plan.where.places
    place_of = [
        place for place, group in zip(places, plan.where.groups, strict=True) for _ in group
    ]
    top = places[-1]
    activations, pseudo_gradients = (
        tuple(put(x, place.batch) for x, place in zip(trees, place_of[:-1], strict=True))
        for trees in (in_flight.activations, in_flight.pseudo_gradients)
    )
    moved = InFlight(
        activations,
        pseudo_gradients,
        put(in_flight.activation_frames, top.whole),
        put(in_flight.pseudo_gradient_frames, top.whole),
        put(in_flight.targets, top.batch),
    )
    if not fifos:
        return moved, ()
    kept: list = []
    for n in range(len(places)):
        kept += jax.device_put(plan.own(n, fifos), carry_sharding(plan, n).fifos)
    return moved, tuple(kept)


def _begin(
    steps, state: tuple, in_flight: InFlight, fifos: tuple, given: list[Given]
) -> tuple[list[Carry], Arrived]:
    """What every place starts from, out of what is in flight."""
    plan = steps.plan
    where, between = plan.where, range(len(in_flight.activations))
    carries, above = [], []
    for n, start in enumerate(steps.start):
        own = [i for i in where.groups[n] if i in between]
        signals = tuple(
            {i: tree[i] for i in own}
            for tree in (in_flight.activations, in_flight.pseudo_gradients)
        )
        carry, _, back = start(
            given[n], plan.own(n, state), *signals, plan.own(n, fifos) if fifos else ()
        )
        carries.append(carry)
        above.append(back)
    sent = [
        {i: in_flight.activations[i] for i in where.links.sent_up(n)}
        for n in range(len(where.places))
    ]
    return carries, Arrived(deliver_up(where.links, where.places, sent), above)


def _start(
    plan: Plan, update_every: int, keep_outputs: bool, n: int, given: Given, state: tuple,
    outputs: dict, cotangents: dict, fifos: tuple,
) -> tuple[Carry, dict, tuple]:  # fmt: skip
    """A cotangent, a sum over receivers, counts as that of one of them; of the others is zero."""
    links, here = plan.where.links, heard_within(plan.task.network.wiring, plan.where.groups[n])
    left = dict(cotangents)
    zero = partial(jax.tree.map, jnp.zeros_like)
    above = tuple(
        {j: left.pop(j) if j in left else zero(cotangents[j]) for j in links.up[n, b]}
        for b in links.above(n)
    )
    within = Within(
        {j: outputs[j] for j in here},
        {j: left.pop(j) if j in left else zero(cotangents[j]) for j in here},
    )
    shown = room_to_show(plan, n, given, keep_outputs)
    updates = given.numbers.shape[1] // update_every
    return start_carry(plan, n, state, within, fifos, shown, updates), {}, above


def _finish(within: Within, above: tuple, up: dict) -> tuple[dict, dict]:
    """What is in flight after the last step: outputs, and whole cotangents, by module."""
    return within.outputs | up, added(within.cotangents, *above)


def _end(finish: list, carries: list[Carry], arrived: Arrived, ups: list) -> tuple[tuple, tuple]:
    """Activations and pseudo-gradients after the last step."""
    outputs: dict[int, PyTree] = {}
    cotangents: dict[int, PyTree] = {}
    for program, carry, above, up in zip(finish, carries, arrived.above, ups, strict=True):
        sent, back = program(carry.within, above, up)
        outputs |= sent
        cotangents |= back
    between = range(len(outputs))
    return tuple(outputs[i] for i in between), tuple(cotangents[i] for i in between)
