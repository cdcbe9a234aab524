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

from sideways_jax.devices.exchange import alike, run_branch, taken
from sideways_jax.devices.layout import Layout, share_of
from sideways_jax.devices.mesh import DATA
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.devices.report import Bytes
from sideways_jax.network.module import key_shape
from sideways_jax.pipeline.even import is_even, run_even_group
from sideways_jax.pipeline.kept import (
    Kept,
    bytes_of_rows,
    kept_packing,
    looking_back,
    nothing_kept,
    with_row,
)
from sideways_jax.pipeline.signals import Signals, exchanged, no_signals, received, sent
from sideways_jax.pipeline.sums import Sums, metrics_on_mesh
from sideways_jax.rule import schedules
from sideways_jax.rule.in_flight import Numbers, numbers_of
from sideways_jax.rule.rule import run_group, show
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, accumulate, first_of, zeros


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
      params, state: the slots of this device.
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
    devices, num_steps = range(layout.num_devices), len(numbers.frames)

    def run(n, own_params, own_state, signals, kept, frame, target, numbers):
        inputs, incoming = received(task, layout, n, signals, frame)
        steps = run_group(
            task, layout.groups[n], own_params, own_state, inputs, incoming, target, numbers, rng,
            axis, fifos=looking_back(task, layout, packing, n, kept), recompute=recompute,
        )  # fmt: skip
        there = zeros(shown)
        if n == layout.num_devices - 1:
            there = show(task, steps[-1].output, target, numbers)
        return steps, sent(task, layout, n, steps, bubble), there

    def run_even(n, own_params, own_state, signals, kept, frame, target, numbers):
        return run_even_group(
            task, layout, n, own_params, own_state, signals, frame, target, numbers, rng, axis
        )

    def branch(run, n, sums, state, signals, kept, *inputs):
        own = layout.params.unpack(n, params), layout.state.unpack(n, state)
        steps, to_others, there = run(n, *own, signals, kept, *inputs)
        sums = layout.grads.plus(n, sums, tuple(one.grads for one in steps))
        state = layout.state.put(n, state, tuple(one.state for one in steps))
        row = packing.pack(n, tuple(one.fifo for one in steps), padding=bubble)
        return state, sums, to_others, row, there

    def body(carry, inputs):
        frame, target, numbers = inputs
        operands = carry.state, carry.signals, carry.kept, taken(frame), target, numbers
        branches, even = ([partial(branch, one, n) for n in devices] for one in (run, run_even))
        in_place = layout.in_place and num_steps > 1  # One step has nothing to add to.
        if is_even(task, layout, frame) and alike(even, carry.grads, *operands):
            branches, in_place = even[:1], True
        state, sums, to_others, row, (output, loss) = run_branch(
            branches, carry.grads if in_place else None, *operands
        )
        if not in_place:
            sums = accumulate(carry.grads, sums)
        signals = exchanged(layout, to_others)
        kept = with_row(task, carry.kept, row)  # In place: what goes through a branch is copied.
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
        def of_device(frame):
            return received(task, layout, n, no_signals(layout), frame)[0]

        return jax.eval_shape(of_device, frame)

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
