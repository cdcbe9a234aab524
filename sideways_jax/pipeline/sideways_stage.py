"""Sideways on one device of a pipeline: its modules, at every step, on what has arrived."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.exchange import exchange, run_branch
from sideways_jax.devices.layout import Layout, filled
from sideways_jax.devices.mesh import DATA
from sideways_jax.devices.packing import Packed
from sideways_jax.pipeline.sums import Sums, metrics_on_mesh
from sideways_jax.rule import schedules
from sideways_jax.rule.in_flight import Numbers, numbers_of
from sideways_jax.rule.rule import run_group, show
from sideways_jax.rule.task import Task
from sideways_jax.rule.wiring import heard, returned
from sideways_jax.tools.trees import PyTree, accumulate, cast_like, first_of, zeros


class Signals(NamedTuple):
    """What has arrived at one device, and what its own modules send each other."""

    inner: Packed
    from_below: Packed  # the activation
    from_above: Packed  # the pseudo-gradient


class _Carry(NamedTuple):
    """What a device keeps from one step to the next."""

    state: Packed
    grads: Packed  # sums
    signals: Signals


def episode_numbers(num_frames: int, depth: int) -> Numbers:
    """What every module works on in an episode: every example has its first frame at step 0."""
    table = schedules.sideways(num_frames, depth)
    frames, origins = jnp.asarray(table.forward), jnp.asarray(table.backward)
    return numbers_of(frames, origins, per_example=False)


def no_signals(layout: Layout, bubble: float = 0.0) -> Signals:
    """An empty pipeline; `bubble` is what stands where nothing has arrived."""
    nothing = filled(layout.signals, bubble)
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
) -> tuple[Sums, Signals]:
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

    Returns:
      Sums, with losses and metrics `[K, B]` if every example has a clock of its own; and the last
      signals.
    """
    per_example = numbers.frames.ndim == 3

    def branch(n, state, signals, frame, target, numbers):
        group, last = layout.groups[n], n == layout.num_devices - 1
        below = frame if n == 0 else layout.signals.unpack(n - 1, signals.from_below)
        above = None if last else layout.signals.unpack(n, signals.from_above)
        activations, pseudo_gradients = layout.inner.unpack(n, signals.inner)
        steps = run_group(
            task, group, layout.params.unpack(n, params), layout.state.unpack(n, state),
            heard(group, below, activations), returned(group, above, pseudo_gradients),
            target, numbers, rng, DATA if replicas > 1 else None,
        )  # fmt: skip
        inner = (
            tuple(one.output for one in steps[:-1]),
            tuple(one.pseudo_gradient for one in steps[1:]),
        )
        output, loss = zeros(shown)
        if last:
            output, loss = show(task, steps[-1].output, target, numbers)
        # The top sends nothing up, the bottom nothing down.
        up, down = filled(layout.signals, bubble), filled(layout.signals, bubble)
        if not last:
            up = layout.signals.pack(n, steps[-1].output, padding=bubble)
        if n > 0:
            down = layout.signals.pack(n - 1, steps[0].pseudo_gradient, padding=bubble)
        sent = Signals(layout.inner.pack(n, inner, padding=bubble), up, down)
        grads = cast_like(tuple(one.grads for one in steps), layout.grads.trees[n])
        new_state = layout.state.pack(n, tuple(one.state for one in steps))
        return new_state, layout.grads.pack(n, grads), sent, output, loss

    first = first_of((targets, numbers))
    shown = jax.eval_shape(lambda *args: show(task, *args), layout.output, *first)
    branches = [partial(branch, n) for n in range(layout.num_devices)]

    def body(carry, inputs):
        state, grads, sent, output, loss = run_branch(branches, carry.state, carry.signals, *inputs)
        arrived = exchange(sent.from_below, sent.from_above, layout.num_devices)
        # Added here, in place: what goes through a branch is copied.
        sums = accumulate(carry.grads, grads)
        _, target, _ = inputs
        metrics = metrics_on_mesh(task, output, target, replicas, per_example=per_example)
        kept = output if keep_outputs else ()
        return _Carry(state, sums, Signals(sent.inner, *arrived)), (kept, loss, metrics)

    start = _Carry(state, filled(layout.grads, 0), signals)
    end, by_step = jax.lax.scan(body, start, (frames, targets, numbers))
    return Sums(end.grads, end.state, *by_step), end.signals
