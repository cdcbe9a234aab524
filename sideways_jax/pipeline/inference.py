"""Depth-parallel inference with the modules spread over a mesh: one message up a step.

`stream.PipelinedModel(mesh=...)` is made of `make_pipelined_step`, the pure function below it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.exchange import on_mesh, run_branch, send_up
from sideways_jax.devices.layout import Layout, filled, pack, place
from sideways_jax.devices.mesh import DEPTH, check_mesh, data_axis, grid
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.network.network import Network, check_still
from sideways_jax.rule.in_flight import following, no_frames
from sideways_jax.rule.rule import forward_group
from sideways_jax.rule.wiring import heard
from sideways_jax.tools.trees import PyTree, select, shape_of, zeros


class ShardedPipeline(NamedTuple):
    """`stream.PipelineState`, with the activations where they have arrived."""

    inner: Packed  # vectors [N, data, length], between the modules of a device
    from_below: Packed  # likewise, from the device below
    frames: jax.Array  # int32[D-1, B], sharded over data; -1 for a bubble
    next_frame: jax.Array  # int32[], the number of the frame that enters next


class Pipelined(NamedTuple):
    """What runs a network over streams on a mesh."""

    variables: tuple[Packed, Packed]  # parameters and state, [N, length], on their devices
    pipeline: ShardedPipeline  # empty
    step: Callable  # pure, to be jitted; see `make_pipelined_step`


def make_pipelined_step(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    mesh: Mesh,
    groups: Sequence[int] | None = None,
    bubble: float = 0.0,
) -> Pipelined:
    """Puts the modules on their devices, once, and gives the function that runs them.

    Staleness is that of D modules, however many share a device: the output is late by D-1 steps.

    Args:
      network: D modules, which run with `train=False`.
      params, state: tuples of D pytrees.
      frame: a batch of frames `[B, ...]`, or its shape.
      mesh, groups: as in `step.make_train_step`.
      bubble: the value of padding and of what has not arrived; tests put NaN there.

    Returns:
      A `Pipelined`. Its `step(variables, pipeline, frame, reset=None)` takes what
      `stream.pipelined_step` takes and gives the same `(pipeline, output, frames)`, except that
      `output` is `[N, B, ...]`, each row on a device along `depth`. The last is `h_D`; on the
      others, which have none, there are zeros. To have it elsewhere, take `[-1]`.

    Raises:
      ValueError: if the modules or the batch do not go into the mesh.
    """
    frame = shape_of(frame)
    check_still(network, params, state, frame)
    layout = place(network, params, state, frame, mesh, groups, train=False)
    (replicas, num_devices), data = check_mesh(mesh), data_axis(mesh)
    inner = Packing.of([up for up, _ in layout.inner.trees])  # Nothing comes down.
    spec: Any = PartitionSpec  # Any: records that hold arrays hold specifications too.
    signals = spec(DEPTH, data) if data else spec(DEPTH)
    numbers = spec(None, data) if data else spec()
    pipeline_specs = ShardedPipeline(signals, signals, numbers, spec())

    def put(params, state):
        return (
            pack(layout.params, layout.groups, params, padding=bubble),
            pack(layout.state, layout.groups, state, padding=bubble),
        )

    def empty():
        def vectors(packing):
            return jax.tree.map(
                lambda x: jnp.broadcast_to(x, (num_devices, replicas, *x.shape)),
                filled(packing, bubble),
            )

        batch = jax.tree.leaves(frame)[0].shape[0]
        nothing = no_frames(network.depth, batch)
        return ShardedPipeline(
            vectors(inner), vectors(layout.signals), nothing, jnp.zeros((), jnp.int32)
        )

    def on_device(variables, pipeline, frame, reset):
        params, state = jax.tree.map(lambda x: x[0], variables)
        below = jnp.where(reset[None], -1, pipeline.frames)
        entering = jnp.full((1, *reset.shape), pipeline.next_frame)
        frames = jnp.concatenate([entering, below])
        branches = [
            partial(_run, network, layout, inner, bubble, n) for n in range(layout.num_devices)
        ]
        arrived = jax.tree.map(lambda x: x[0, 0], (pipeline.inner, pipeline.from_below))
        own, up, output = run_branch(branches, params, state, *arrived, frame, frames)
        sent = own, send_up(up, layout.num_devices)
        inner_rows, up_rows = jax.tree.map(lambda x: x[None, None], sent)
        next_frame = following(pipeline.next_frame, 1)
        pipeline = ShardedPipeline(inner_rows, up_rows, frames[:-1], next_frame)
        return pipeline, jax.tree.map(lambda x: x[None], output), frames[-1]

    sharded = on_mesh(
        mesh,
        on_device,
        (spec(DEPTH), pipeline_specs, spec(data), spec(data)),
        (pipeline_specs, signals, spec(data)),
    )

    @jax.jit
    def step(variables, pipeline, frame, reset=None):
        if reset is None:
            reset = jnp.zeros(pipeline.frames.shape[1:], bool)
        return sharded(variables, pipeline, frame, reset)

    shardings = jax.tree.map(
        lambda one: NamedSharding(mesh, one), pipeline_specs, is_leaf=lambda x: isinstance(x, spec)
    )
    return Pipelined(
        jax.jit(put, out_shardings=NamedSharding(mesh, spec(DEPTH)))(params, state),
        jax.jit(empty, out_shardings=shardings)(),
        step,
    )


def top_row(output: PyTree, mesh: Mesh) -> PyTree:
    """`[-1]` of an output `[N, B, ...]` as `step` gives it, left where it is: nothing is sent."""
    sharding = _on_top(mesh)

    def take(rows):
        pieces = {piece.device: piece.data for piece in rows.addressable_shards}
        own = [pieces[device][0] for device in sharding.mesh.devices if device in pieces]
        return jax.make_array_from_single_device_arrays(
            rows.shape[1:], sharding, own, dtype=rows.dtype
        )

    return jax.tree.map(take, output)


@functools.lru_cache
def _on_top(mesh: Mesh) -> NamedSharding:
    """Batches over the top devices of all replicas; asked for at every step."""
    return NamedSharding(Mesh(grid(mesh)[:, -1], ("data",)), PartitionSpec("data"))


def _run(
    network: Network, layout: Layout, inner: Packing, bubble: float, n: int,
    params: Packed, state: Packed, between: Packed, from_below: Packed, frame: PyTree,
    frames: jax.Array,
) -> tuple[Packed, Packed, PyTree]:  # fmt: skip
    """Device n at one step: what its modules send each other, what goes up, and the output."""
    group = layout.groups[n]
    below = frame if n == 0 else layout.signals.unpack(n - 1, from_below)
    sent = forward_group(
        network, group, layout.params.unpack(n, params), layout.state.unpack(n, state),
        heard(group, below, inner.unpack(n, between)), frames,
    )  # fmt: skip
    between = inner.pack(n, sent[:-1], padding=bubble)
    if n + 1 < layout.num_devices:
        return between, layout.signals.pack(n, sent[-1], padding=bubble), zeros(layout.output)
    return between, filled(layout.signals, bubble), select(frames[-1] >= 0, sent[-1])
