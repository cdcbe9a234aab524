"""Sideways, or pipelined backprop, in one device's program: its modules, on what has arrived.

`rule.run_group` is the rule. Here is what surrounds it on one device of several: which frame it
is, what comes from other devices, and what goes there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.device_programs.links import heard_within
from sideways_jax.device_programs.plan import Plan
from sideways_jax.devices.routes import added
from sideways_jax.network.wiring import FRAME, heard, returned
from sideways_jax.rule.in_flight import Numbers, numbers_of
from sideways_jax.rule.rule import ModuleStep, empty_fifos, run_group, show
from sideways_jax.rule.task import metrics_of
from sideways_jax.tools.trees import (
    PyTree,
    accumulate,
    each_example,
    entry,
    squared_norm,
    wide_zeros,
    zeros,
)


class Given(NamedTuple):
    """What a device has of the clip, or of a part of a stream; only what its modules need."""

    frames: PyTree  # [K, B, ...] where the frame is heard, as it came; else ()
    targets: PyTree  # [K, B, ...] at the top, by computation step; else ()
    numbers: jax.Array  # int32[2, K, D] or [2, K, D, B]: `Numbers.frames` and `origins`
    rng: jax.Array | None


class Within(NamedTuple):
    """What the modules of a device send each other."""

    outputs: dict[int, PyTree]  # by sender
    cotangents: dict[int, PyTree]  # by receiver, the sum over the modules of this device


class Shown(NamedTuple):
    """What the top device shows, by step; nothing on others."""

    outputs: PyTree = ()  # [K, B, ...], if they are wanted
    losses: PyTree = ()  # [K]; [K, B] where every example has a clock of its own
    metrics: PyTree = ()  # likewise, by name


class Carry(NamedTuple):
    """What a device keeps from one step to the next; programs take its memory over (donation)."""

    step: jax.Array  # int32[], since the call
    state: tuple
    sums: tuple  # of the gradients since the last update
    num_grads: (
        jax.Array
    )  # int32[], of every module of the device: over how many (examples of) steps
    within: Within
    fifos: tuple  # of every module, with pipelined backprop; else ()
    shown: Shown
    squares: jax.Array  # [updates], of the norm of this device's gradients


def start_carry(
    plan: Plan,
    n: int,
    state: tuple,
    within: Within,
    fifos: tuple,
    shown: Shown,
    updates: int,
) -> Carry:
    """What device n has before the first step of a call; copies, which the steps may take apart.

    Args:
      plan, n: the run, and the device.
      state: of its modules.
      within: what is in flight between them.
      fifos: what they keep.
      shown: room for what it will show, zeros.
      updates: how many there will be in this call.
    """
    params = plan.own(n, plan.params)
    return Carry(
        step=jnp.zeros((), jnp.int32),
        state=jax.tree.map(jnp.copy, state),
        sums=wide_zeros(params),
        num_grads=jnp.zeros((len(params),), jnp.int32),
        within=jax.tree.map(jnp.copy, within),
        fifos=jax.tree.map(jnp.copy, fifos),
        shown=shown,
        squares=jnp.zeros((updates,), jax.eval_shape(partial(squares_of, plan), params).dtype),
    )


def room_to_show(plan: Plan, n: int, given: Given, keep_outputs: bool) -> Shown:
    """Zeros like what device n will have shown after the call; nothing but at the top."""
    if n < plan.top:
        return Shown()
    one = jax.eval_shape(
        lambda given: _show(plan, zeros(plan.outputs[-1]), given, keep_outputs, 0), given
    )
    return many(one, given.numbers.shape[1])


def many(one: PyTree, count: int) -> PyTree:
    """Room for so many entries of these shapes: zeros with a new leading axis."""
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), one)


def write(entries: PyTree, one: PyTree, index: jax.Array) -> PyTree:
    """The entries with another one at this place."""
    return jax.tree.map(
        lambda all_, x: jax.lax.dynamic_update_index_in_dim(
            all_, jnp.asarray(x, all_.dtype), index, 0
        ),
        entries,
        one,
    )


class Empty(NamedTuple):
    """What device n has in an empty pipeline: bubbles."""

    within: Within
    below: dict[int, PyTree]  # as `links.deliver_up` gives it
    above: tuple  # as `links.deliver_down` gives it
    fifos: tuple


def empty_pipeline(plan: Plan, n: int) -> Empty:
    """Nothing in flight, on device n."""
    links = plan.where.links

    def bubbles(sources: Iterable[int]) -> dict[int, PyTree]:
        return {
            j: jax.tree.map(lambda x: jnp.full(x.shape, plan.bubble, x.dtype), plan.outputs[j])
            for j in sources
        }

    within = heard_within(plan.task.network.wiring, plan.where.groups[n])
    return Empty(
        Within(bubbles(within), bubbles(within)),
        bubbles(links.heard_by(n)),
        tuple(bubbles(links.up[n, b]) for b in links.above(n)),
        own_fifos(plan, n),
    )


def own_fifos(plan: Plan, n: int) -> tuple:
    """What the modules of device n keep before the first step; nothing with Sideways."""
    if not plan.task.remembers:
        return ()
    fifos = jax.eval_shape(
        lambda params, state, frame, rng: empty_fifos(
            plan.task.network, params, state, frame,
            train=plan.task.train, rng=rng, recompute=plan.recompute,
        ),
        plan.params, plan.state, plan.frame, plan.rng,
    )  # fmt: skip
    return zeros(plan.own(n, fifos))


def step_of_device(
    plan: Plan, n: int, params: tuple, carry: Carry, below: dict, above: tuple, given: Given
) -> tuple[Carry, dict, dict]:
    """One step of the modules of a device.

    Args:
      plan, n: the run, and the device.
      params: of its modules.
      carry: what the step before left.
      below: activations from other devices, by module.
      above: for each device above that hears this one, cotangents by module.
      given: of the whole call.

    Returns:
      What is kept; outputs for other devices, by module; cotangents, by device and module.
    """
    task, group, wiring = plan.task, plan.where.groups[n], plan.task.network.wiring
    numbers = _numbers(given, carry.step)
    frame, target = entry((given.frames, given.targets), carry.step)
    inputs = heard(wiring, group, {FRAME: frame} | carry.within.outputs | below)
    incoming = added(carry.within.cotangents, *above)
    done = run_group(
        task, group, params, carry.state, inputs, tuple(incoming.get(i) for i in group), target,
        numbers, given.rng, fifos=carry.fifos or None, recompute=plan.recompute,
    )  # fmt: skip
    within, up, down = _sent(plan, n, done)
    trained = jnp.stack([numbers.origins[i] >= 0 for i in group])
    shown = carry.shown
    if n == plan.top:
        keep_outputs = bool(jax.tree.leaves(carry.shown.outputs))
        one = _show(plan, done[-1].output, given, keep_outputs, carry.step)
        shown = write(shown, one, carry.step)
    carry = Carry(
        step=carry.step + 1,
        state=tuple(one.state for one in done),
        sums=accumulate(carry.sums, tuple(one.grads for one in done)),
        num_grads=carry.num_grads + trained.reshape(len(group), -1).sum(-1, dtype=jnp.int32),
        within=within,
        fifos=tuple(one.fifo for one in done) if carry.fifos else (),
        shown=shown,
        squares=carry.squares,
    )
    return carry, up, down


def _sent(plan: Plan, n: int, done: tuple[ModuleStep, ...]) -> tuple[Within, dict, dict]:
    """What goes to modules of this device, up, and down."""
    where, wiring = plan.where, plan.task.network.wiring
    group = where.groups[n]
    outputs = {i: one.output for i, one in zip(group, done, strict=True)}
    of_inputs = {i: one.pseudo_gradient for i, one in zip(group, done, strict=True)}
    here = heard_within(plan.task.network.wiring, plan.where.groups[n])
    within = Within(
        {j: outputs[j] for j in here}, {j: returned(wiring, j, of_inputs) for j in here}
    )
    down = {
        a: {j: returned(wiring, j, of_inputs) for j in where.links.up[a, n]}
        for a in where.links.below(n)
    }
    return within, {j: outputs[j] for j in where.links.sent_up(n)}, down


def _numbers(given: Given, step: jax.Array) -> Numbers:
    frames, origins = jax.lax.dynamic_index_in_dim(given.numbers, step, 1, keepdims=False)
    return numbers_of(frames, origins, per_example=frames.ndim == 2)


def _show(
    plan: Plan, output: PyTree, given: Given, keep_outputs: bool, step: jax.Array | int
) -> Shown:
    task, numbers = plan.task, _numbers(given, jnp.asarray(step))
    target = entry(given.targets, step)
    output, loss = show(task, output, target, numbers)
    metrics: PyTree = ()
    if task.metrics_fn is not None and numbers.frames.ndim == 2:
        metrics = each_example(lambda y, t: metrics_of(task, y, t), output, target)
    elif task.metrics_fn is not None:
        metrics = metrics_of(task, output, target)
    return Shown(output if keep_outputs else (), loss, metrics)


def squares_of(plan: Plan, grads: PyTree) -> jax.Array:
    """The sum of the squares of gradients, in the dtype that all devices share."""
    return squared_norm(grads, like=plan.params)
