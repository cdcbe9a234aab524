"""Sideways on one device of a pipeline: its modules, at every step, on what has arrived.

And pipelined backprop, which keeps past inputs too. Those of all modules of a device lie in one row
for each of the last 2(D-1) steps, and a module looks as many rows back as its cotangents are late.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.exchange import exchange, run_branch
from sideways_jax.devices.layout import Layout
from sideways_jax.devices.mesh import DATA
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.devices.routes import added, from_above, from_below, send_down, send_up
from sideways_jax.network.wiring import FRAME, heard, returned
from sideways_jax.pipeline.sums import Sums, metrics_on_mesh
from sideways_jax.rule import schedules
from sideways_jax.rule.fifo import Past, passes_of
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
    past: Packed  # [2(D-1), length], what modules kept at step t in row t mod 2(D-1); or {}


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
      recompute: of pipelined backprop: whether modules keep inputs, or residuals.

    Returns:
      Sums, with losses and metrics `[K, B]` if every example has a clock of its own; and the last
      signals.
    """
    per_example = numbers.frames.ndim == 3
    first = first_of((targets, numbers))
    shown = jax.eval_shape(lambda *args: show(task, *args), layout.output, *first)
    axis = DATA if replicas > 1 else None
    kept = _kept(task, layout, signals, first_of(frames), rng, recompute=recompute)
    num_rows = task.network.wiring.first_trained(0)

    def branch(n, state, signals, past, t, frame, target, numbers):
        own_params, own_state = layout.params.unpack(n, params), layout.state.unpack(n, state)
        inputs, incoming = _received(task, layout, n, signals, frame)
        fifos = _looking_back(task, layout, kept, n, past, t)
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
        row = kept.pack(n, tuple(one.fifo for one in steps), padding=bubble)
        return new_state, layout.grads.pack(n, grads), sent, row, output, loss

    branches = [partial(branch, n) for n in range(layout.num_devices)]

    def body(carry, inputs):
        state, grads, sent, row, output, loss = run_branch(
            branches, carry.state, carry.signals, carry.past, *inputs
        )
        signals = exchanged(layout, sent)
        # Added and written here, in place: what goes through a branch is copied.
        sums = accumulate(carry.grads, grads)
        t, _, target, _ = inputs
        past = {
            name: jax.lax.dynamic_update_index_in_dim(rows, row[name], t % num_rows, axis=0)
            for name, rows in carry.past.items()
        }
        metrics = metrics_on_mesh(task, output, target, replicas, per_example=per_example)
        outputs = output if keep_outputs else ()
        return _Carry(state, sums, signals, past), (outputs, loss, metrics)

    past = {
        name: jnp.tile(row, (num_rows, 1)) for name, row in filled(kept, bubble).items()
    }  # fmt: skip
    start = _Carry(state, filled(layout.grads, 0), signals, past)
    clock = jnp.arange(numbers.frames.shape[0], dtype=jnp.int32)
    end, by_step = jax.lax.scan(body, start, (clock, frames, targets, numbers))
    return Sums(end.grads, end.state, *by_step), end.signals


def _kept(
    task: Task, layout: Layout, signals: Signals, frame: PyTree, rng: jax.Array | None,
    *, recompute: bool,
) -> Packing:  # fmt: skip
    """What the modules of each device keep of a step: nothing with Sideways, or in the top one."""

    def of_device(n):
        if task.rule != "pipelined_backprop":
            return ((),) * len(layout.groups[n])
        inputs = jax.eval_shape(lambda *x: _received(task, layout, n, *x)[0], signals, frame)
        variables = layout.params.trees[n], layout.state.trees[n], inputs
        found: list[PyTree] = []
        for i, own_params, own_state, x in zip(layout.groups[n], *variables, strict=True):
            one = passes_of(
                task.network.modules[i], own_params, own_state, x, rng,
                train=task.train, recompute=recompute,
            )  # fmt: skip
            found.append(one.kept if i < task.depth - 1 else ())
        return tuple(found)

    return Packing.of([of_device(n) for n in range(layout.num_devices)])


def _looking_back(
    task: Task, layout: Layout, kept: Packing, n: int, past: Packed, t: jax.Array
) -> tuple | None:
    """For every module of device n, what it kept when the input of now's cotangents came."""
    if task.rule != "pipelined_backprop":
        return None
    found: list[Past | tuple] = []
    for k, i in enumerate(layout.groups[n]):
        late = task.network.wiring.first_trained(i)
        if late == 0:
            found.append(())  # The gradient of the top module is there at once.
            continue
        row = {
            name: jax.lax.dynamic_index_in_dim(rows, (t - late) % rows.shape[0], keepdims=False)
            for name, rows in past.items()
        }
        found.append(Past(kept.unpack(n, row)[k]))
    return tuple(found)


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
        tuple(send_up(route, n, outputs, bubble) for route in layout.routes),
        tuple(send_down(route, n, cotangents, bubble) for route in layout.routes),
    )


def exchanged(layout: Layout, sent: Signals) -> Signals:
    """What every device has received, after all have sent."""
    arrived = [
        exchange(up, down, layout.num_devices, route.distance)
        for route, up, down in zip(layout.routes, sent.from_below, sent.from_above, strict=True)
    ]
    return Signals(sent.inner, tuple(up for up, _ in arrived), tuple(down for _, down in arrived))
