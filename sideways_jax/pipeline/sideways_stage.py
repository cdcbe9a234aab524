"""Sideways on one device of a pipeline: its modules, at every step, on what has arrived.

And pipelined backprop, whose modules look back at what they kept (`kept.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sideways_jax.devices.exchange import exchange, run_branch
from sideways_jax.devices.layout import Layout, share_of
from sideways_jax.devices.mesh import DATA
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.devices.report import Bytes
from sideways_jax.devices.routes import added, from_above, from_below, to_above, to_below
from sideways_jax.network.module import key_shape
from sideways_jax.network.wiring import FRAME, heard, returned
from sideways_jax.pipeline.kept import (
    Kept,
    bytes_of_rows,
    kept_packing,
    looking_back,
    nothing_kept,
    with_row,
)
from sideways_jax.pipeline.sums import Sums, metrics_on_mesh
from sideways_jax.rule import schedules
from sideways_jax.rule.in_flight import Numbers, numbers_of
from sideways_jax.rule.rule import ModuleStep, run_group, show
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, accumulate, cast_like, first_of, zeros


class Signals(NamedTuple):
    """What has arrived at one device, and what its own modules send each other."""

    inner: Packed
    from_below: tuple[Packed, ...]  # activations, by route
    from_above: tuple[Packed, ...]  # pseudo-gradients, by route


class _Carry(NamedTuple):
    """What a device keeps from one step to the next."""

    state: Packed
    grads: Packed  # sums
    signals: Signals
    kept: Kept


def episode_numbers(num_frames: int, depth: int) -> Numbers:
    """What every module works on in an episode: every example has its first frame at step 0."""
    table = schedules.sideways(num_frames, depth)
    frames, origins = jnp.asarray(table.forward), jnp.asarray(table.backward)
    return numbers_of(frames, origins, per_example=False)


def no_signals(layout: Layout, bubble: float = 0.0) -> Signals:
    """An empty pipeline; `bubble` is what stands where nothing has arrived."""
    nothing = tuple(filled(route.packing, bubble) for route in layout.routes)
    return Signals(filled(layout.inner, bubble), nothing, nothing)


def sideways_steps(
    task: Task,
    layout: Layout,
    params: Packed,
    state: Packed,
    signals: Signals,
    frames: PyTree,
    targets: PyTree,
    numbers: Numbers,
    *,
    rng: jax.Array | None,
    keep_outputs: bool,
    replicas: int = 1,
    bubble: float = 0.0,
    recompute: bool = True,
    kept: Kept | None = None,
) -> tuple[Sums, Signals, Kept]:
    """Several steps of `rule.run_group` on one device; to be called inside `shard_map`.

    Args:
      task: what is trained.
      layout: where its modules are.
      params, state: the vectors of this device.
      signals: what the step before left, or `no_signals`.
      frames, targets: `[K, B, ...]`, the share of this replica; targets by computation step.
      numbers: likewise, `[K, D]` or `[K, D, B]`.
      rng: the key of the run, or None.
      keep_outputs: whether the outputs of all steps are returned.
      replicas: along `data`.
      bubble: the value of the padding of signals; tests put NaN there.
      recompute: of pipelined backprop: whether modules keep inputs, or residuals.
      kept: likewise, what they have kept; by default nothing yet.

    Returns:
      Sums, with losses and metrics `[K, B]` if every example has a clock of its own; the last
      signals; and what is kept.
    """
    per_example = numbers.frames.ndim == 3
    first = first_of((targets, numbers))
    shown = jax.eval_shape(lambda *args: show(task, *args), layout.output, *first)
    axis = DATA if replicas > 1 else None
    packing = packing_of_kept(task, layout, first_of(frames), rng, recompute=recompute)
    kept = nothing_kept(task, packing, bubble) if kept is None else kept

    def branch(n, state, signals, kept, frame, target, numbers):
        own_params, own_state = layout.params.unpack(n, params), layout.state.unpack(n, state)
        inputs, incoming = _received(task, layout, n, signals, frame)
        fifos = looking_back(task, layout, packing, n, kept)
        steps = run_group(
            task, layout.groups[n], own_params, own_state, inputs, incoming, target, numbers, rng,
            axis, fifos=fifos, recompute=recompute,
        )  # fmt: skip
        output, loss = zeros(shown)
        if n == layout.num_devices - 1:
            output, loss = show(task, steps[-1].output, target, numbers)
        grads = cast_like(tuple(one.grads for one in steps), layout.grads.trees[n])
        new_state = layout.state.pack(n, tuple(one.state for one in steps))
        sent = _sent(task, layout, n, steps, bubble)
        row = packing.pack(n, tuple(one.fifo for one in steps), padding=bubble)
        return new_state, layout.grads.pack(n, grads), sent, row, output, loss

    branches = [partial(branch, n) for n in range(layout.num_devices)]

    def body(carry, inputs):
        state, grads, sent, row, output, loss = run_branch(
            branches, carry.state, carry.signals, carry.kept, *inputs
        )
        signals = exchanged(layout, sent)
        # Added and written here, in place: what goes through a branch is copied.
        sums = accumulate(carry.grads, grads)
        kept = with_row(task, carry.kept, row)
        _, target, _ = inputs
        metrics = metrics_on_mesh(task, output, target, replicas, per_example=per_example)
        outputs = output if keep_outputs else ()
        return _Carry(state, sums, signals, kept), (outputs, loss, metrics)

    start = _Carry(state, filled(layout.grads, 0), signals, kept)
    end, by_step = jax.lax.scan(body, start, (frames, targets, numbers))
    return Sums(end.grads, end.state, *by_step), end.signals, end.kept


def packing_of_kept(
    task: Task, layout: Layout, frame: PyTree, rng: jax.Array | None, *, recompute: bool
) -> Packing:
    """How what is kept lies in vectors; `frame` is the shape of a batch of one replica."""

    def inputs(n):
        def received(frame):
            return _received(task, layout, n, no_signals(layout), frame)[0]

        return jax.eval_shape(received, frame)

    return kept_packing(task, layout, inputs, rng, recompute=recompute)


def bytes_kept(
    task: Task, mesh: Mesh, frame: PyTree, *, recompute: bool = True
) -> Callable[[Layout], Bytes]:
    """Counts, for `devices.report`, the bytes of inputs or residuals that modules keep.

    Args:
      task: what is trained; only pipelined backprop keeps something.
      mesh: where.
      frame: a whole batch of frames, or its shape.
      recompute: whether inputs are kept, or residuals.
    """

    def of_layout(layout: Layout) -> Bytes:
        share = share_of(frame, mesh)
        packing = packing_of_kept(task, layout, share, key_shape(), recompute=recompute)
        return bytes_of_rows(task, layout, packing)

    return of_layout


def _received(
    task: Task, layout: Layout, n: int, signals: Signals, frame: PyTree
) -> tuple[tuple, tuple]:
    """What each module of device n hears, and the pseudo-gradient that has come back to it."""
    group, wiring = layout.groups[n], task.network.wiring
    activations, pseudo_gradients = layout.inner.unpack(n, signals.inner)
    sent = {FRAME: frame} | dict(zip(group, activations, strict=False))
    back = [dict(zip(group, pseudo_gradients, strict=False))]
    for route, below, above in zip(
        layout.routes, signals.from_below, signals.from_above, strict=True
    ):
        sent |= from_below(route, n, below)
        back.append(from_above(route, n, above))
    incoming = added(*back)
    return heard(wiring, group, sent), tuple(incoming.get(i) for i in group)


def _sent(
    task: Task, layout: Layout, n: int, steps: tuple[ModuleStep, ...], bubble: float
) -> Signals:
    """What the modules of device n send each other, up, and down."""
    group, wiring = layout.groups[n], task.network.wiring
    outputs = {i: one.output for i, one in zip(group, steps, strict=True)}
    of_inputs = {i: one.pseudo_gradient for i, one in zip(group, steps, strict=True)}
    cotangents = {j: returned(wiring, j, of_inputs) for j in range(group[-1])}
    inner = tuple(tuple(x[i] for i in group[:-1]) for x in (outputs, cotangents))
    return Signals(
        layout.inner.pack(n, inner, padding=bubble),
        tuple(to_above(route, n, outputs, bubble) for route in layout.routes),
        tuple(to_below(route, n, cotangents, bubble) for route in layout.routes),
    )


def exchanged(layout: Layout, sent: Signals) -> Signals:
    """What every device has received, after all have sent."""
    arrived = [
        exchange(up, down, layout.num_devices, route.distance)
        for route, up, down in zip(layout.routes, sent.from_below, sent.from_above, strict=True)
    ]
    return Signals(sent.inner, tuple(up for up, _ in arrived), tuple(down for _, down in arrived))
