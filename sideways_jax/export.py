"""Trained networks as StableHLO, to run where this library is not: `jax.export`.

What is exported holds the parameters and takes arrays alone. `exported.serialize()` gives bytes;
`jax.export.deserialize(bytes).call(...)` runs them, with JAX and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from sideways_jax.network.network import Network, check_still
from sideways_jax.one_device.inference import init_pipeline, pipelined_step
from sideways_jax.tools.trees import PyTree, shape_of

PLATFORMS = ("cpu", "cuda", "tpu")


class ExportedPipeline(NamedTuple):
    """Depth-parallel inference on one device, in two programs."""

    start: export.Exported  # () -> signals, a tuple of arrays: those of an empty pipeline
    # (signals, frame, reset bool [B]) -> (signals, output, int32 [B] numbers of the frames that the
    # outputs are of, -1 for none). `reset`: the frame is the first of another stream.
    step: export.Exported


def per_frame(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """The synchronous forward pass of a batch of frames: `frames [B, ...] -> output [B, ...]`.

    Args:
      network, params, state: the network runs with `train=False`.
      frame: a batch of frames, or its shape; the program takes any B.
      platforms: that it is made for, of "cpu", "cuda", "rocm" and "tpu".

    Raises:
      ValueError: if the frames do not fit the network.
    """
    network.activation_shapes(params, state, shape_of(frame))

    @jax.jit
    def apply(frames: PyTree) -> PyTree:
        return network.apply(params, state, frames, train=False)[0]

    [batch] = export.symbolic_shape("batch")

    def of_any_batch(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)

    return export.export(apply, platforms=platforms)(jax.tree.map(of_any_batch, shape_of(frame)))


def pipelined(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> ExportedPipeline:
    """One step of depth-parallel inference (`stream.pipelined_step`), on one device.

    A frame of each of B streams enters, and the output of the frame of D-1 steps before leaves. B
    is that of `frame`: the signals between modules have it, too.

    Args:
      network, params, state: D modules, which run with `train=False`.
      frame: a batch of frames, or its shape.
      platforms: as in `per_frame`.

    Raises:
      ValueError: if the frames do not fit the network, or a module has a memory.
    """
    frame = shape_of(frame)
    check_still(network, params, state, frame)
    signals = jax.eval_shape(lambda: init_pipeline(network, params, state, frame))
    structure = jax.tree.structure(signals)
    reset = jax.ShapeDtypeStruct(jax.tree.leaves(frame)[0].shape[:1], jnp.bool)

    @jax.jit
    def start() -> tuple:
        return tuple(jax.tree.leaves(init_pipeline(network, params, state, frame)))

    @jax.jit
    def step(signals: tuple, frame: PyTree, reset: jax.Array) -> tuple:
        pipeline = jax.tree.unflatten(structure, signals)
        pipeline, *shown = pipelined_step(network, params, state, pipeline, frame, reset)
        return tuple(jax.tree.leaves(pipeline)), *shown

    exporting: dict[str, Any] = {"platforms": platforms}
    return ExportedPipeline(
        export.export(start, **exporting)(),
        export.export(step, **exporting)(tuple(jax.tree.leaves(signals)), frame, reset),
    )
