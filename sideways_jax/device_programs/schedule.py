"""Exact backprop with a program for every device, as a clock table says.

A device has two programs, one for each pass. Python dispatches them step by step, so that an idle
device has nothing to do, and holds what a stage keeps for the backward pass of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.device_programs.group_step import (
    Carry,
    Given,
    Shown,
    Within,
    many,
    start_carry,
    write,
)
from sideways_jax.device_programs.links import hears_frame
from sideways_jax.device_programs.plan import Plan
from sideways_jax.device_programs.steps import carry_sharding
from sideways_jax.devices.routes import added
from sideways_jax.rule.kept import Passes
from sideways_jax.rule.schedules import ClockTable
from sideways_jax.rule.stage import Context, make_stage
from sideways_jax.rule.task import metrics_of
from sideways_jax.tools.trees import PyTree, accumulate, entry, wide_zeros


class Stages(NamedTuple):
    """The programs of a run; each is compiled when it is called first."""

    plan: Plan
    start: Sequence[Callable]  # [n]
    forward: Sequence[Callable]  # [n]
    backward: Sequence[Callable]  # [n]


def make_stages(plan: Plan, num_frames: int, *, keep_outputs: bool) -> Stages:
    """The programs of the stages, for clips of so many frames."""
    starts, forwards, backwards = [], [], []
    for n, place in enumerate(plan.where.places):
        stage, keeps = _stage(plan, n), carry_sharding(plan, n)
        starts.append(
            jax.jit(partial(_start, plan, n, keep_outputs, num_frames), out_shardings=keeps)
        )
        moves = _Moves(keeps.step, keeps.state, keeps.shown)
        forwards.append(
            jax.jit(
                partial(_forward, plan, n, stage, keep_outputs),
                donate_argnums=1,
                out_shardings=(moves, place.batch, None),
            )
        )
        backwards.append(
            jax.jit(
                partial(_backward, plan, n, stage),
                donate_argnums=1,
                out_shardings=(place.whole, place.batch),
            )
        )
    return Stages(plan, starts, forwards, backwards)


def _start(plan: Plan, n: int, keep_outputs: bool, num_frames: int, state: tuple) -> Carry:
    shown = Shown()
    if n == plan.top:

        def one(output, target):
            loss = wide_zeros(plan.task.loss_fn(output, target))
            return _shown(plan, keep_outputs, output, loss, target)

        shown = many(jax.eval_shape(one, plan.outputs[-1], plan.target), num_frames)
    carry = start_carry(plan, n, state, Within({}, {}), (), shown, 1)
    return carry._replace(num_grads=jnp.full_like(carry.num_grads, num_frames))


def _shown(
    plan: Plan, keep_outputs: bool, output: PyTree, loss: jax.Array, target: PyTree
) -> Shown:
    metrics: PyTree = ()
    if plan.task.metrics_fn is not None:
        metrics = metrics_of(plan.task, output, target)
    return Shown(output if keep_outputs else (), loss, metrics)


def run_table(
    stages: Stages, table: ClockTable, params: tuple, state: tuple, given: list[Given]
) -> list[Carry]:
    """An episode of backprop.

    Args:
      stages: the programs.
      table: which frame every device works on at which step.
      params, state: of every module, on its place.
      given: of every place.

    Returns:
      For every place its sums, its state, and what the top shows.
    """
    plan = stages.plan
    links, places = plan.where.links, plan.where.places
    own = [plan.own(n, params) for n in range(len(places))]
    carries = [start(plan.own(n, state)) for n, start in enumerate(stages.start)]
    heard: list[dict] = [{} for _ in places]  # by frame: outputs by module
    back: list[dict] = [{} for _ in places]  # by frame and place above: cotangents by module
    kept: list[dict] = [{} for _ in places]  # by frame
    for forward, backward in zip(table.forward.tolist(), table.backward.tolist(), strict=True):
        for n, frame in enumerate(forward):
            if frame < 0:
                continue
            moves = _Moves(carries[n].step, carries[n].state, carries[n].shown)
            moves, up, kept[n][frame] = stages.forward[n](
                own[n], moves, heard[n].pop(frame, {}), given[n]
            )
            carries[n] = carries[n]._replace(**moves._asdict())
            for above in links.above(n):
                message = {j: up[j] for j in links.up[n, above]}
                message = jax.device_put(message, places[above].batch)
                heard[above].setdefault(frame, {}).update(message)
        for n, frame in enumerate(backward):
            if frame < 0:
                continue
            cotangents = tuple(back[n].pop((frame, above)) for above in links.above(n))
            sums, down = stages.backward[n](
                own[n], carries[n].sums, kept[n].pop(frame), cotangents, given[n]
            )
            carries[n] = carries[n]._replace(sums=sums)
            for below in links.below(n):
                back[below][frame, n] = jax.device_put(down[below], places[below].batch)
    return carries


class _Moves(NamedTuple):
    """What a forward pass changes of a `Carry`."""

    step: jax.Array
    state: tuple
    shown: Shown


def _forward(
    plan: Plan, n: int, stage: Passes, keep_outputs: bool, params: tuple, moves: _Moves,
    arrived: dict, given: Given,
) -> tuple[_Moves, dict, tuple]:  # fmt: skip
    """The forward pass of the next frame: what the stage sends up, and keeps."""
    frame_id = moves.step
    context = _context(given, frame_id)
    sent, (output, state), kept = stage.forward(params, moves.state, arrived, context)
    shown = moves.shown
    if n == plan.top:
        one = _shown(plan, keep_outputs, output, sent, context.target)
        shown = write(shown, one, frame_id)
        sent = {}
    return _Moves(frame_id + 1, state, shown), sent, (frame_id, kept)


def _backward(
    plan: Plan, n: int, stage: Passes, params: tuple, sums: tuple, kept: tuple, cotangents: tuple,
    given: Given,
) -> tuple[tuple, dict]:  # fmt: skip
    """The backward pass of a frame: the sums of gradients, and what goes down, by place."""
    frame_id, kept = kept
    links, context = plan.where.links, _context(given, frame_id)
    if n == plan.top:
        loss = jax.eval_shape(plan.task.loss_fn, plan.outputs[-1], plan.target)
        cotangent: Any = jnp.ones(loss.shape, loss.dtype)
    else:
        cotangent = added(*cotangents)
    grads, down = stage.backward(params, kept, context, cotangent)
    by_place = {a: {j: down[j] for j in links.up[a, n]} for a in links.below(n)}
    return accumulate(sums, grads), by_place


def _context(given: Given, frame_id: jax.Array) -> Context:
    frame, target = entry((given.frames, given.targets), frame_id)
    return Context(frame, frame_id, target, given.rng)


def _stage(plan: Plan, n: int) -> Passes:
    links, task, group = plan.where.links, plan.task, plan.where.groups[n]
    frame = plan.frame if hears_frame(task.network.wiring, group) else ()
    target = plan.target if n == plan.top else ()
    context = Context(frame, jax.ShapeDtypeStruct((), jnp.int32), target, plan.rng)
    return make_stage(
        task, group, links.sent_up(n), (plan.own(n, plan.params), plan.own(n, plan.state)),
        {j: plan.outputs[j] for j in links.heard_by(n)}, context, recompute=plan.recompute,
    )  # fmt: skip
