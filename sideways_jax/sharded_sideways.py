"""Sideways on one device of a pipeline: its modules, at every step, on what has arrived."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax import schedules
from sideways_jax.episode import LossFn
from sideways_jax.layout import Layout, Sums, exchange, filled, run_branch
from sideways_jax.module_step import module_step
from sideways_jax.network import Network, module_key
from sideways_jax.packing import Packed
from sideways_jax.trees import PyTree, each_example, first_of, select, zeros


class Clock(NamedTuple):
    """What every module works on at each of K steps, for a whole batch or every example of it."""

    forward: jax.Array  # int32[K, D] or [K, D, B], the frame of its activation, -1 for a bubble
    backward: jax.Array  # likewise, the frame whose loss is back-propagated, -1 for none
    # Of the whole batch, not of one replica's share:
    complete: jax.Array  # bool[K, D], whether no example is a bubble: only then a state moves
    trained: jax.Array  # bool[K, D], whether any example has a gradient


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


def episode_clock(num_frames: int, depth: int) -> Clock:
    """The clock of an episode: every example has its first frame at the first step."""
    table = schedules.sideways(num_frames, depth)
    forward, backward = jnp.asarray(table.forward), jnp.asarray(table.backward)
    return Clock(forward, backward, forward >= 0, backward >= 0)


def no_signals(layout: Layout, bubble: float = 0.0) -> Signals:
    """An empty pipeline; `bubble` is what stands where nothing has arrived."""
    nothing = filled(layout.signals, bubble)
    return Signals(filled(layout.inner, bubble), nothing, nothing)


def sideways_steps(
    network: Network,
    loss_fn: LossFn,
    layout: Layout,
    params: Packed,
    state: Packed,
    signals: Signals,
    frames: PyTree,
    targets: PyTree,
    clock: Clock,
    *,
    train: bool,
    rng: jax.Array | None,
    bubble: float = 0.0,
) -> tuple[Sums, Signals]:
    """Several steps of Sideways on one device of the pipeline; to be called inside `shard_map`.

    With a clock for every example bubbles are zeros for a module, as in `step.computation_step`.

    Args:
      network, loss_fn, layout: see above.
      params, state: the vectors of this device.
      signals: what the step before left, or `no_signals`.
      frames, targets: `[K, B, ...]`, the share of this replica; targets by computation step.
      clock: likewise.
      train, rng: passed on to the modules.
      bubble: the value of the padding of signals; tests put NaN there.

    Returns:
      Sums, with `losses` `[K, B]` if the clock is one for every example; and the last signals.
    """
    top = network.depth - 1
    per_example = clock.forward.ndim == 3

    def zero_bubbles(frame_ids, tree):
        return select(frame_ids >= 0, tree) if per_example else tree

    def loss_of(output, target):
        return each_example(loss_fn, output, target) if per_example else loss_fn(output, target)

    def branch(n, state, signals, frame, target, clock):
        forward, backward = clock.forward, clock.backward
        group = layout.groups[n]
        own_params, own_state = layout.params.unpack(n, params), layout.state.unpack(n, state)
        activations, pseudo_gradients = layout.inner.unpack(n, signals.inner)
        below = frame if n == 0 else layout.signals.unpack(n - 1, signals.from_below)

        def loss_gradient(output):
            return zero_bubbles(forward[top], jax.grad(loss_fn)(output, target))

        last = group[-1] == top
        above = () if last else (layout.signals.unpack(n, signals.from_above),)
        inputs, incoming = (below, *activations), (*pseudo_gradients, *above)
        steps = [
            module_step(
                network.modules[i],
                own_params[j],
                own_state[j],
                zero_bubbles(forward[i], inputs[j]),
                loss_gradient if i == top else zero_bubbles(backward[i], incoming[j]),
                train=train,
                rng=module_key(rng, i, forward[i].max()),  # Of one frame, or bubbles.
            )
            for j, i in enumerate(group)
        ]
        new_state = tuple(
            select(clock.complete[i], one.state, old)
            for i, one, old in zip(group, steps, own_state, strict=True)
        )
        grads = tuple(
            select(clock.trained[i], one.grads) for i, one in zip(group, steps, strict=True)
        )
        inner = (
            tuple(one.output for one in steps[:-1]),
            tuple(one.pseudo_gradient for one in steps[1:]),
        )
        output, loss = zeros(layout.output), zeros(loss_shape)
        if last:
            valid = forward[top] >= 0
            output = select(valid, steps[-1].output)
            loss = select(valid, loss_of(steps[-1].output, target))
        # The top sends nothing up, the bottom nothing down.
        up, down = filled(layout.signals, bubble), filled(layout.signals, bubble)
        if not last:
            up = layout.signals.pack(n, steps[-1].output, padding=bubble)
        if n > 0:
            down = layout.signals.pack(n - 1, steps[0].pseudo_gradient, padding=bubble)
        sent = Signals(layout.inner.pack(n, inner, padding=bubble), up, down)
        return layout.state.pack(n, new_state), layout.params.pack(n, grads), sent, output, loss

    loss_shape = jax.eval_shape(loss_of, layout.output, first_of(targets))
    branches = [partial(branch, n) for n in range(layout.num_devices)]

    def body(carry, inputs):
        state, grads, sent, output, loss = run_branch(branches, carry.state, carry.signals, *inputs)
        arrived = exchange(sent.from_below, sent.from_above, layout.num_devices)
        # Added here, in place: what goes through a branch is copied.
        sums = jax.tree.map(jnp.add, carry.grads, grads)
        return _Carry(state, sums, Signals(sent.inner, *arrived)), (output, loss)

    start = _Carry(state, filled(layout.params, 0), signals)
    end, (outputs, losses) = jax.lax.scan(body, start, (frames, targets, clock))
    return Sums(end.grads, end.state, outputs, losses), end.signals
