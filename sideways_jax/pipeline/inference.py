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

from sideways_jax.devices import exchange
from sideways_jax.devices.exchange import on_mesh, own, run_branch
from sideways_jax.devices.layout import Layout, pack, place
from sideways_jax.devices.mesh import DEPTH, check_mesh, data_axis, grid
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.devices.routes import from_below, to_above
from sideways_jax.network.network import Network, check_still
from sideways_jax.network.wiring import FRAME, heard
from sideways_jax.rule.in_flight import following, frames_heard, no_frames
from sideways_jax.rule.rule import forward_group
from sideways_jax.tools.trees import PyTree, select, shape_of, zeros


class ShardedPipeline(NamedTuple):
    """`stream.PipelineState`, with the activations where they have arrived."""

    inner: Packed  # vectors [N, data, length], between the modules of a device
    from_below: tuple[Packed, ...]  # likewise, from devices below, by route
    frames: jax.Array  # int32[D-1, B], sharded over data; -1 for a bubble
    next_frame: jax.Array  # int32[], the number of the frame that enters next


class _Run(NamedTuple):
    """What stays the same in all steps."""

    network: Network
    layout: Layout
    inner: Packing  # [n]: activations between the modules of device n; nothing comes down
    bubble: float


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
    run = _Run(network, layout, Packing.of([up for up, _ in layout.inner.trees]), bubble)
    batch = jax.tree.leaves(frame)[0].shape[0]
    spec: Any = PartitionSpec  # Any: records that hold arrays hold specifications too.
    signals = spec(DEPTH, data) if data else spec(DEPTH)
    numbers = spec(None, data) if data else spec()
    pipeline_specs = ShardedPipeline(signals, signals, numbers, spec())

    def put(params, state):
        return (
            pack(layout.params, layout.groups, params, padding=bubble),
            pack(layout.state, layout.groups, state, padding=bubble),
        )

    sharded = on_mesh(
        mesh,
        partial(_on_device, run),
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
        jax.jit(partial(_empty, run, num_devices, replicas, batch), out_shardings=shardings)(),
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


def _empty(run: _Run, num_devices: int, replicas: int, batch: int) -> ShardedPipeline:
    def vectors(packing):
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_devices, replicas, *x.shape)),
            filled(packing, run.bubble),
        )

    return ShardedPipeline(
        vectors(run.inner),
        tuple(vectors(route.packing) for route in run.layout.routes),
        no_frames(run.network.depth, batch),
        jnp.zeros((), jnp.int32),
    )


def _on_device(
    run: _Run,
    variables: tuple[Packed, Packed],
    pipeline: ShardedPipeline,
    frame: PyTree,
    reset: jax.Array,
) -> tuple[ShardedPipeline, PyTree, jax.Array]:
    """One step of every device; to be called inside `shard_map`."""
    layout = run.layout
    below = jnp.where(reset[None], -1, pipeline.frames)
    entering = jnp.full(reset.shape, pipeline.next_frame)
    frames = frames_heard(run.network.wiring, below, entering)
    branches = [partial(_branch, run, n) for n in range(layout.num_devices)]
    received = jax.tree.map(lambda x: x[0, 0], (pipeline.inner, pipeline.from_below))
    inner, up, output = run_branch(branches, *own(variables), *received, frame, frames)
    arrived = tuple(
        exchange.send_up(vectors, layout.num_devices, route.distance)
        for route, vectors in zip(layout.routes, up, strict=True)
    )
    inner, arrived = jax.tree.map(lambda x: x[None, None], (inner, arrived))
    next_frame = following(pipeline.next_frame, 1)
    pipeline = ShardedPipeline(inner, arrived, frames[:-1], next_frame)
    return pipeline, jax.tree.map(lambda x: x[None], output), frames[-1]


def _branch(
    run: _Run, n: int, params: Packed, state: Packed, inner: Packed, below: tuple[Packed, ...],
    frame: PyTree, frames: jax.Array,
) -> tuple[Packed, tuple[Packed, ...], PyTree]:  # fmt: skip
    """Device n at one step: what its modules send each other, what goes up, and the output."""
    layout, group = run.layout, run.layout.groups[n]
    sent = {FRAME: frame} | dict(zip(group, run.inner.unpack(n, inner), strict=False))
    for route, vectors in zip(layout.routes, below, strict=True):
        sent |= from_below(route, n, vectors)
    outputs = forward_group(
        run.network, group, layout.params.unpack(n, params), layout.state.unpack(n, state),
        heard(run.network.wiring, group, sent), frames,
    )  # fmt: skip
    inner = run.inner.pack(n, outputs[:-1], padding=run.bubble)
    by_module = dict(zip(group, outputs, strict=True))
    up = tuple(to_above(route, n, by_module, run.bubble) for route in layout.routes)
    if n + 1 < layout.num_devices:
        return inner, up, zeros(layout.output)
    return inner, up, select(frames[-1] >= 0, outputs[-1])
