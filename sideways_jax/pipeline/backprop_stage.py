"""Exact backprop on one device of a pipeline, as a clock table says.

A stage keeps what the backward pass of a frame will need until it comes: the stage's input
("recompute": it runs the forward pass again), or the residuals of its vjp. Both lie in a stash with
as many places as the table asks for.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.exchange import exchange, run_branch, taken
from sideways_jax.devices.layout import Layout
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.devices.routes import from_above, from_below, to_above, to_below
from sideways_jax.pipeline.sums import Sums
from sideways_jax.rule.kept import Passes
from sideways_jax.rule.schedules import ClockTable
from sideways_jax.rule.stage import Context, make_stage
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import (
    PyTree,
    accumulate,
    entry,
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
    from_below: Packed  # the activations that arrived
    from_above: Packed  # the gradients that arrived


class _Run(NamedTuple):
    """What stays the same in all steps of an episode."""

    layout: Layout
    table: ClockTable
    stages: list[Passes]
    stash: Packing
    params: Packed
    loss_dtype: jnp.dtype
    bubble: float


def backprop_steps(
    task: Task,
    layout: Layout,
    table: ClockTable,
    params: Packed,
    state: Packed,
    frames: PyTree,
    targets: PyTree,
    *,
    recompute: bool,
    rng: jax.Array | None,
    bubble: float = 0.0,
) -> Sums:
    """An episode of backprop on one device of the pipeline; to be called inside `shard_map`.

    All signals of a step are of one frame, and a shortcut is handed on from stage to stage with
    what the main path carries.

    Args:
      task: what is trained.
      layout: where its modules are.
      table: which frame this device works on at which step.
      params, state: the slots of this device.
      frames, targets: `[K, B, ...]`, the share of this replica.
      recompute: keep the input and the state of a stage and run its forward pass again, rather
        than keep the residuals.
      rng: the key of the episode, or None.
      bubble: the value of signals before the first real one arrives, of their padding and of
        unused places in the stash; tests put NaN there.

    Returns:
      Sums; those of gradients, and the losses, are in `trees.wide` dtypes: float32 for bfloat16
      parameters, which is twice their bytes on every device.
    """
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    devices = range(layout.num_devices)
    frame, target = first_of((frames, targets))
    stages = [_stage(task, layout, n, frame, target, rng, recompute=recompute) for n in devices]
    stash = Packing.of([stage.kept for stage in stages])
    loss = jax.eval_shape(task.loss_fn, layout.output, target)
    run = _Run(layout, table, stages, stash, params, loss.dtype, bubble)
    branches = [partial(_branch, run, n) for n in devices]

    def context(frame_ids):
        """Of the frame that this device works on: taken from the clip here, see `taken`."""
        own = frame_ids[jax.lax.axis_index(DEPTH)]
        frame, target = taken(entry((frames, targets), jnp.maximum(own, 0)))
        return Context(frame, own, target, rng)

    def body(carry_and_sums, clock):
        carry, sums = carry_and_sums
        inside = sums if layout.in_place else None
        carry, grads = run_branch(branches, carry, inside, *map(context, clock))
        below, above = exchange(carry.from_below, carry.from_above, layout.num_devices)
        sums = grads if layout.in_place else accumulate(sums, grads)
        return (carry._replace(from_below=below, from_above=above), sums), None

    outputs, losses = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_frames, *x.shape), x.dtype), (layout.output, loss)
    )
    rows = filled(stash, bubble)
    start = _Carry(
        state=state,
        stash={name: jnp.tile(row, (table.stash, 1)) for name, row in rows.items()},
        outputs=zeros(outputs),
        losses=wide_zeros(losses),
        from_below=filled(layout.relay.packing, bubble),
        from_above=filled(layout.relay.packing, bubble),
    )
    clock = jnp.asarray(table.forward), jnp.asarray(table.backward)
    (end, sums), _ = jax.lax.scan(body, (start, filled(layout.grads, 0)), clock)
    return Sums(sums, end.state, end.outputs, end.losses)


def _branch(
    run: _Run, n: int, carry: _Carry, sums: Packed | None, forward: Context, backward: Context
) -> tuple[_Carry, Packed]:
    """Stage n at one step: what it keeps and, in the place of what arrived, sends; its gradients.

    These are added to the sums, if there are some. An idle stage does no work: `cond` skips it,
    `where` would not.
    """
    nothing = filled(run.layout.relay.packing, run.bubble)
    carry, up = jax.lax.cond(
        forward.frame_id >= 0,
        partial(_forward, run, n),
        lambda carry, _: (carry, nothing),
        carry, forward,
    )  # fmt: skip
    no_grads = filled(run.layout.grads, 0) if sums is None else None
    grads, down = jax.lax.cond(
        backward.frame_id >= 0,
        partial(_backward, run, n),
        lambda _, sums, __: (no_grads if sums is None else sums, nothing),
        carry, sums, backward,
    )  # fmt: skip
    return carry._replace(from_below=up, from_above=down), grads


def _forward(run: _Run, n: int, carry: _Carry, context: Context) -> tuple[_Carry, Packed]:
    """The forward pass of stage n: what it keeps, and sends up."""
    layout, relay = run.layout, run.layout.relay
    arrived = from_below(relay, n, carry.from_below)
    result, (output, new_state), kept = run.stages[n].forward(
        layout.params.unpack(n, run.params),
        layout.state.unpack(n, carry.state),
        arrived,
        context,
    )
    place = context.frame_id % run.table.stash
    put = partial(jax.lax.dynamic_update_index_in_dim, index=place, axis=0)
    row = run.stash.pack(n, kept, padding=run.bubble)
    carry = carry._replace(
        state=layout.state.put(n, carry.state, new_state),
        stash={name: put(rows, row[name]) for name, rows in carry.stash.items()},
    )
    if n < layout.num_devices - 1:
        return carry, to_above(relay, n, result, run.bubble)
    put = partial(jax.lax.dynamic_update_index_in_dim, index=context.frame_id, axis=0)
    outputs = jax.tree.map(put, carry.outputs, output)
    losses = put(carry.losses, result.astype(carry.losses.dtype))
    carry = carry._replace(outputs=outputs, losses=losses)
    return carry, filled(relay.packing, run.bubble)


def _backward(
    run: _Run, n: int, carry: _Carry, sums: Packed | None, context: Context
) -> tuple[Packed, Packed]:
    """The backward pass of stage n: its gradients, or sums with them, and what it sends down."""
    layout, relay = run.layout, run.layout.relay
    place = context.frame_id % run.table.stash
    row = {name: entry(rows, place) for name, rows in carry.stash.items()}
    if n < layout.num_devices - 1:
        cotangent: Any = from_above(relay, n, carry.from_above)
    else:
        cotangent = jnp.ones((), run.loss_dtype)
    grads, down = run.stages[n].backward(
        layout.params.unpack(n, run.params),
        run.stash.unpack(n, row),
        context,
        cotangent,
    )
    return layout.grads.plus(n, sums, grads), to_below(relay, n, down, run.bubble)


def _stage(
    task: Task, layout: Layout, n: int, frame: PyTree, target: PyTree, rng: jax.Array | None, *,
    recompute: bool,
) -> Passes:  # fmt: skip
    """The modules of device n; frame, target and key are one of each, or their shapes."""
    relay = layout.relay
    frame, target, key = shape_of((frame, target, rng))
    context = Context(frame, jax.ShapeDtypeStruct((), jnp.int32), target, key)
    below = (relay.sources[n - 1], relay.packing.trees[n - 1]) if n else ((), ())
    return make_stage(
        task, layout.groups[n], relay.sources[n], (layout.params.trees[n], layout.state.trees[n]),
        dict(zip(*below, strict=True)), context, recompute=recompute,
    )  # fmt: skip
