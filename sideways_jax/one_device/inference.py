"""Depth-parallel inference on one device: every module on another frame of a stream."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.network import Network, check_still
from sideways_jax.rule.in_flight import following, frames_heard
from sideways_jax.rule.rule import forward_group
from sideways_jax.tools.trees import PyTree, select, zeros
from sideways_jax.training.streams import Outputs


class PipelineState(NamedTuple):
    """The activations between modules, D-1 of them, each with the number of its frame."""

    activations: tuple  # [i]: h_i [B, ...], from module i, for module i+1
    frames: jax.Array  # int32[D-1, B], -1 for a bubble
    next_frame: jax.Array  # int32[], the number of the frame that enters next


def init_pipeline(network: Network, params: tuple, state: tuple, frame: PyTree) -> PipelineState:
    """The empty pipeline, for batches like `frame` `[B, ...]`, an array or its shape."""
    check_still(network, params, state, frame)
    shapes = network.activation_shapes(params, state, frame)[:-1]
    batch = jax.tree.leaves(frame)[0].shape[0]
    bubbles = jnp.full((network.depth - 1, batch), -1, jnp.int32)
    return PipelineState(zeros(shapes), bubbles, jnp.zeros((), jnp.int32))


def pipelined_step(
    network: Network,
    params: tuple,
    state: tuple,
    pipeline: PipelineState,
    frame: PyTree,
    reset: jax.Array | None = None,
) -> tuple[PipelineState, PyTree, jax.Array]:
    """One step of all modules, each on the activation that the step before sent it.

    Args:
      network: D modules, which run with `train=False`.
      params, state: tuples of D pytrees.
      pipeline: `init_pipeline`, or what the step before gave.
      frame: a batch `[B, ...]`, one frame of each of B streams.
      reset: bool `[B]`, whether it is the first of another stream, of which nothing is in the
        pipeline yet; by default never.

    Returns:
      `(pipeline, output, frames)`: `h_D` `[B, ...]`, zero for a bubble, and int32 `[B]`, the number
      of the frame that it is of, counted from 0 since `init_pipeline`, -1 for a bubble.
    """
    below = pipeline.frames
    if reset is not None:
        below = jnp.where(reset[None], -1, below)
    entering = jnp.full(below.shape[1:], pipeline.next_frame)
    frames = frames_heard(network.wiring, below, entering)
    group = tuple(range(network.depth))
    inputs = network.inputs(frame, pipeline.activations)
    sent = forward_group(network, group, params, state, inputs, frames)
    new = PipelineState(sent[:-1], frames[:-1], following(pipeline.next_frame, 1))
    return new, select(frames[-1] >= 0, sent[-1]), frames[-1]


def pipelined_outputs(
    network: Network,
    params: tuple,
    state: tuple,
    pipeline: PipelineState,
    frames: PyTree,
    reset: jax.Array | None = None,
) -> tuple[PipelineState, Outputs]:
    """`pipelined_step` over frames `[K, B, ...]` and `reset` `[K, B]`, in one `lax.scan`."""

    def body(pipeline, inputs):
        pipeline, output, shown = pipelined_step(network, params, state, pipeline, *inputs)
        return pipeline, Outputs(output, shown)

    return jax.lax.scan(body, pipeline, (frames, reset))
