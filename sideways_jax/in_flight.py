"""The signals on their way between modules, and the clock that says what they are worth."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network import Network
from sideways_jax.trees import PyTree, shape_of, zeros


class InFlight(NamedTuple):
    """The signals between modules, and where they come from; D-1 of each kind.

    A frame number of -1 says that the signal is a bubble, whatever its value. There is one number
    for a whole batch; or, with `per_example`, one for each of its B examples, so that streams of a
    batch can start and end at different times.
    """

    activations: tuple  # [i]: h_i [B, ...], from module i, for module i+1
    pseudo_gradients: tuple  # [i]: cotangent of h_i [B, ...], from module i+1, for module i
    activation_frames: jax.Array  # int32[D-1] or [D-1, B], the frame that each comes from
    pseudo_gradient_frames: jax.Array  # likewise, the frame whose loss it comes from
    targets: tuple  # target="origin": [i] the target of the frame of activations[i]; else ()


def init_in_flight(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    target: PyTree = None,
    *,
    target_alignment: str = "stream",
    per_example: bool = False,
) -> InFlight:
    """The empty pipeline: zeros ("restart", section 3.4), all marked as bubbles.

    Args:
      network, params, state: as everywhere.
      frame: a batch of frames `[B, ...]`, or its shape.
      target: a batch of targets, or its shape; used for `target_alignment="origin"` alone.
      target_alignment: "stream" or "origin", see `step.episode_gradients`.
      per_example: whether every example has frame numbers of its own; see `restart`.

    Raises:
      ValueError: if a module does not fit the one below it.
    """
    shapes = network.activation_shapes(params, state, frame)[:-1]
    batch = jax.tree.leaves(frame)[0].shape[:1] if per_example else ()
    target_shapes = (shape_of(target),) * len(shapes) if target_alignment == "origin" else ()
    return InFlight(
        activations=zeros(shapes),
        pseudo_gradients=zeros(shapes),
        # Two arrays: one in two places could not be donated.
        activation_frames=no_frames(network.depth, *batch),
        pseudo_gradient_frames=no_frames(network.depth, *batch),
        targets=zeros(target_shapes),
    )


def no_frames(depth: int, *batch: int) -> jax.Array:
    """The frame numbers of an empty pipeline, int32[D-1] or [D-1, B]."""
    return jnp.full((depth - 1, *batch), -1, jnp.int32)


def restart(in_flight: InFlight, reset: jax.Array) -> InFlight:
    """The pipeline, emptied for the examples whose next frame is the first of another stream.

    Args:
      in_flight: with frame numbers `per_example`.
      reset: bool[B].
    """
    return in_flight._replace(
        activation_frames=jnp.where(reset[None], -1, in_flight.activation_frames),
        pseudo_gradient_frames=jnp.where(reset[None], -1, in_flight.pseudo_gradient_frames),
    )


def tick(in_flight: InFlight, frame_id: jax.Array) -> tuple[InFlight, jax.Array, jax.Array]:
    """The clock of one computation step: frame numbers alone, the signals stay as they are.

    Args:
      in_flight: as the step before left it.
      frame_id: int32, or `[B]`: the number of the frame that enters, -1 for none.

    Returns:
      `(in_flight, frames, origins)`: the numbers after the step; and int32 `[D]` or `[D, B]`, the
      frame that each module works on, and the one whose loss its pseudo-gradient comes from, -1
      for none: without an activation there is nothing to back-propagate through.
    """
    frames = jnp.concatenate([frame_id[None], in_flight.activation_frames])
    # The top module's gradient is the exact one of the activation that it just computed.
    origins = jnp.concatenate([in_flight.pseudo_gradient_frames, frames[-1:]])
    origins = jnp.where(frames >= 0, origins, -1)
    moved = in_flight._replace(activation_frames=frames[:-1], pseudo_gradient_frames=origins[1:])
    return moved, frames, origins
