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
from sideways_jax.trees import PyTree, first_of, select, zeros


class _Carry(NamedTuple):
    """What a device keeps from one step to the next."""

    state: Packed
    grads: Packed  # sums
    inner: Packed
    from_below: Packed  # the activation that arrived
    from_above: Packed  # the pseudo-gradient that arrived


def sideways_steps(
    network: Network,
    loss_fn: LossFn,
    layout: Layout,
    params: Packed,
    state: Packed,
    frames: PyTree,
    targets: PyTree,
    *,
    train: bool,
    rng: jax.Array | None,
    bubble: float = 0.0,
) -> Sums:
    """An episode of Sideways on one device of the pipeline; to be called inside `shard_map`.

    Args:
      network, loss_fn, layout: see above.
      params, state: the vectors of this device.
      frames, targets: `[K, B, ...]`, the share of this replica; targets by computation step.
      train, rng: passed on to the modules.
      bubble: the value of signals before the first real one arrives, and of their padding; tests
        put NaN there.
    """
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    table = schedules.sideways(num_frames, network.depth)
    top = network.depth - 1

    def branch(n, carry, frame, target, forward, backward):
        group = layout.groups[n]
        own_params, own_state = layout.params.unpack(n, params), layout.state.unpack(n, carry.state)
        activations, pseudo_gradients = layout.inner.unpack(n, carry.inner)
        below = frame if n == 0 else layout.signals.unpack(n - 1, carry.from_below)

        def loss_gradient(output):
            return jax.grad(loss_fn)(output, target)

        last = group[-1] == top
        above = loss_gradient if last else layout.signals.unpack(n, carry.from_above)
        inputs, incoming = (below, *activations), (*pseudo_gradients, above)
        steps = [
            module_step(
                network.modules[i],
                own_params[j],
                own_state[j],
                inputs[j],
                incoming[j],
                train=train,
                rng=module_key(rng, i, forward[i]),
            )
            for j, i in enumerate(group)
        ]
        new_state = tuple(
            select(forward[i] >= 0, one.state, old)
            for i, one, old in zip(group, steps, own_state, strict=True)
        )
        grads = tuple(
            select(backward[i] >= 0, one.grads) for i, one in zip(group, steps, strict=True)
        )
        inner = (
            tuple(one.output for one in steps[:-1]),
            tuple(one.pseudo_gradient for one in steps[1:]),
        )
        output, loss = zeros(layout.output), jnp.zeros((), loss_shape.dtype)
        if last:
            valid = forward[top] >= 0
            output = select(valid, steps[-1].output)
            loss = select(valid, loss_fn(steps[-1].output, target))
        # The top sends nothing up, the bottom nothing down.
        up, down = filled(layout.signals, bubble), filled(layout.signals, bubble)
        if not last:
            up = layout.signals.pack(n, steps[-1].output, padding=bubble)
        if n > 0:
            down = layout.signals.pack(n - 1, steps[0].pseudo_gradient, padding=bubble)
        carry = _Carry(
            state=layout.state.pack(n, new_state),
            grads=jax.tree.map(jnp.add, carry.grads, layout.params.pack(n, grads)),
            inner=layout.inner.pack(n, inner, padding=bubble),
            from_below=up,
            from_above=down,
        )
        return carry, output, loss

    loss_shape = jax.eval_shape(loss_fn, layout.output, first_of(targets))
    branches = [partial(branch, n) for n in range(layout.num_devices)]

    def body(carry, inputs):
        carry, output, loss = run_branch(branches, carry, *inputs)
        arrived = exchange(carry.from_below, carry.from_above, layout.num_devices)
        return carry._replace(from_below=arrived[0], from_above=arrived[1]), (output, loss)

    start = _Carry(
        state=state,
        grads=filled(layout.params, 0),
        inner=filled(layout.inner, bubble),
        from_below=filled(layout.signals, bubble),
        from_above=filled(layout.signals, bubble),
    )
    clock = jnp.asarray(table.forward), jnp.asarray(table.backward)
    carry, (outputs, losses) = jax.lax.scan(body, start, (frames, targets, *clock))
    return Sums(carry.grads, carry.state, outputs, losses)
