"""Exact backprop on one device of a pipeline, as a clock table says.

A stage keeps what the backward pass of a frame will need until it comes: the stage's input
("recompute": it runs the forward pass again), or the residuals of its vjp. Both lie in a stash with
as many places as the table asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.exchange import exchange, run_branch
from sideways_jax.devices.layout import Layout, filled
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.network.module import module_key
from sideways_jax.network.network import Network
from sideways_jax.pipeline.sums import Sums
from sideways_jax.rule.schedules import ClockTable
from sideways_jax.rule.task import LossFn
from sideways_jax.tools.trees import (
    PyTree,
    accumulate,
    cast_like,
    first_of,
    shape_of,
    wide_zeros,
    zeros,
)


class _Carry(NamedTuple):
    """What a device keeps from one step to the next."""

    state: Packed
    stash: Packed  # [places, length]
    outputs: PyTree  # [K, B, ...]
    losses: jax.Array  # [K]
    from_below: Packed  # the activation that arrived
    from_above: Packed  # the gradient that arrived


class _Stage(NamedTuple):
    """The modules of one device as one function, and what it keeps of a frame."""

    kept: PyTree  # shapes of what is kept of a frame
    # keep(params, state, x, frame_id, target) -> (result, (output, new_state), what is kept)
    keep: Callable[..., tuple[PyTree, tuple[PyTree, PyTree], PyTree]]
    # pull_back(params, kept, x, frame_id, target, cotangent) -> (grads, cotangent of x)
    pull_back: Callable[..., tuple[PyTree, PyTree]]


def backprop_steps(
    network: Network,
    loss_fn: LossFn,
    layout: Layout,
    table: ClockTable,
    params: Packed,
    state: Packed,
    frames: PyTree,
    targets: PyTree,
    *,
    recompute: bool,
    train: bool,
    rng: jax.Array | None,
    bubble: float = 0.0,
) -> Sums:
    """An episode of backprop on one device of the pipeline; to be called inside `shard_map`.

    Args:
      network, loss_fn, layout: see `layout.py`.
      table: which frame this device works on at which step.
      params, state: the vectors of this device.
      frames, targets: `[K, B, ...]`, the share of this replica.
      recompute: keep the input and the state of a stage and run its forward pass again, rather
        than keep the residuals.
      train, rng: passed on to the modules.
      bubble: the value of signals before the first real one arrives, of their padding and of
        unused places in the stash; tests put NaN there.

    Returns:
      Sums; those of gradients, and the losses, are in `trees.wide` dtypes: float32 for bfloat16
      parameters, which is twice their bytes on every device. (The names of the vectors stay those
      of the parameters, "bfloat16 000".)
    """
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    stages = [
        _make_stage(
            network, loss_fn, layout, n, first_of(frames), first_of(targets),
            recompute=recompute, train=train, rng=rng,
        )
        for n in range(layout.num_devices)
    ]  # fmt: skip
    stash_packing = Packing.of([stage.kept for stage in stages])
    top = layout.num_devices - 1
    nothing_up, nothing_down = filled(layout.signals, bubble), filled(layout.signals, bubble)
    no_grads = filled(layout.grads, 0)

    def entry(tree, frame_id):
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, frame_id, keepdims=False), tree
        )

    def input_of(n, frame_id, otherwise):
        return entry(frames, frame_id) if n == 0 else otherwise

    def forward(n, carry, frame_id):
        stage = stages[n]
        x = input_of(n, frame_id, layout.signals.unpack(n - 1, carry.from_below) if n else None)
        result, (output, new_state), kept = stage.keep(
            layout.params.unpack(n, params),
            layout.state.unpack(n, carry.state),
            x,
            frame_id,
            entry(targets, frame_id),
        )
        row = stash_packing.pack(n, kept, padding=bubble)
        carry = carry._replace(
            state=layout.state.pack(n, new_state),
            stash={
                name: jax.lax.dynamic_update_index_in_dim(
                    rows, row[name], frame_id % table.stash, axis=0
                )
                for name, rows in carry.stash.items()
            },
        )
        if n < top:
            return carry, layout.signals.pack(n, result, padding=bubble)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=frame_id, axis=0)
        outputs = jax.tree.map(put, carry.outputs, output)
        losses = put(carry.losses, result.astype(carry.losses.dtype))
        return carry._replace(outputs=outputs, losses=losses), nothing_up

    def backward(n, carry, frame_id):
        row = {name: entry(rows, frame_id % table.stash) for name, rows in carry.stash.items()}
        if n < top:
            cotangent = layout.signals.unpack(n, carry.from_above)
        else:
            cotangent = jnp.ones((), loss_shape.dtype)
        grads, down = stages[n].pull_back(
            layout.params.unpack(n, params),
            stash_packing.unpack(n, row),
            input_of(n, frame_id, None),
            frame_id,
            entry(targets, frame_id),
            cotangent,
        )
        down = layout.signals.pack(n - 1, down, padding=bubble) if n else nothing_down
        return layout.grads.pack(n, cast_like(grads, layout.grads.trees[n])), down

    def branch(n, carry, forward_frames, backward_frames):
        # Who has nothing to do waits: a conditional, unlike a selection, does not compute.
        f, b = forward_frames[n], backward_frames[n]
        carry, up = jax.lax.cond(
            f >= 0, partial(forward, n), lambda carry, _: (carry, nothing_up), carry, f
        )
        grads, down = jax.lax.cond(
            b >= 0, partial(backward, n), lambda *_: (no_grads, nothing_down), carry, b
        )
        return carry._replace(from_below=up, from_above=down), grads

    def body(carry_and_sums, clock):
        carry, sums = carry_and_sums
        branches = [partial(branch, n) for n in range(layout.num_devices)]
        carry, grads = run_branch(branches, carry, *clock)
        below, above = exchange(carry.from_below, carry.from_above, layout.num_devices)
        # Added here, in place: what goes through a branch is copied.
        sums = accumulate(sums, grads)
        return (carry._replace(from_below=below, from_above=above), sums), None

    loss_shape = jax.eval_shape(loss_fn, layout.output, first_of(targets))
    by_frame = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_frames, *x.shape), x.dtype), (layout.output, loss_shape)
    )
    outputs, losses = zeros(by_frame[0]), wide_zeros(by_frame[1])
    start = _Carry(
        state=state,
        stash={
            name: jnp.tile(row, (table.stash, 1))
            for name, row in filled(stash_packing, bubble).items()
        },
        outputs=outputs,
        losses=losses,
        from_below=filled(layout.signals, bubble),
        from_above=filled(layout.signals, bubble),
    )
    clock = jnp.asarray(table.forward), jnp.asarray(table.backward)
    (end, sums), _ = jax.lax.scan(body, (start, no_grads), clock)
    return Sums(sums, end.state, end.outputs, end.losses)


def _make_stage(network, loss_fn, layout, n, frame, target, *, recompute, train, rng) -> _Stage:
    group = layout.groups[n]
    is_top = n == layout.num_devices - 1

    def run(params, state, x, frame_id, target):
        new_state = []
        for j, i in enumerate(group):
            key = module_key(rng, i, frame_id)
            x, one = network.modules[i].apply(params[j], state[j], x, train=train, rng=key)
            new_state.append(one)
        return (loss_fn(x, target) if is_top else x), (x, tuple(new_state))

    def linearised(params, state, x, frame_id, target):
        def in_params_and_input(params, x):
            return run(params, state, x, frame_id, target)

        return jax.vjp(in_params_and_input, params, x, has_aux=True)

    x = frame if n == 0 else layout.signals.trees[n - 1]
    arguments = (layout.params.trees[n], layout.state.trees[n], x,
                 jax.ShapeDtypeStruct((), jnp.int32), shape_of(target))  # fmt: skip

    if recompute:
        # The first stage reads its frame again; it need not keep that.
        def keep(params, state, x, frame_id, target):
            result, aux = run(params, state, x, frame_id, target)
            return result, aux, ((state, ()) if n == 0 else (state, x))

        def pull_back(params, kept, x, frame_id, target, cotangent):
            state, kept_x = kept
            _, vjp, _ = linearised(params, state, x if n == 0 else kept_x, frame_id, target)
            return vjp(cotangent)

    else:
        # Parameters among the residuals (and the frame) are there anyway: only the rest is kept.
        found: dict[str, Any] = {}

        def keep(params, state, x, frame_id, target):
            result, vjp, aux = linearised(params, state, x, frame_id, target)
            leaves, found["structure"] = jax.tree.flatten(vjp)
            known = jax.tree.leaves((params, x) if n == 0 else params)
            where = [next((k for k, v in enumerate(known) if v is leaf), None) for leaf in leaves]
            found["where"] = where
            return result, aux, [v for v, k in zip(leaves, where, strict=True) if k is None]

        def pull_back(params, kept, x, frame_id, target, cotangent):
            known = jax.tree.leaves((params, x) if n == 0 else params)
            kept = iter(kept)
            leaves = [next(kept) if k is None else known[k] for k in found["where"]]
            return jax.tree.unflatten(found["structure"], leaves)(cotangent)

    kept = jax.eval_shape(keep, *arguments)[2]
    return _Stage(kept, keep, pull_back)
