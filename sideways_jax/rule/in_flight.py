"""The signals between modules, and the frame numbers that say which of them are valid."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.network import Network
from sideways_jax.network.wiring import FRAME, Wiring
from sideways_jax.tools.trees import PyTree, shape_of, zeros


class InFlight(NamedTuple):
    """The signals between modules, and where they come from; D-1 of each kind.

    A frame number of -1 says that the signal is a bubble, whatever its value. There is one number
    for a whole batch; or, with `per_example`, one for each of its B examples, so that streams of a
    batch can start and end at different times.
    """

    activations: tuple  # [i]: h_i [B, ...], from module i, for those that hear it
    pseudo_gradients: tuple  # [i]: cotangent of h_i [B, ...], the sum over those, for module i
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
      network: D modules.
      params, state: tuples of D pytrees.
      frame: a batch of frames `[B, ...]`, or its shape.
      target: a batch of targets, or its shape; used for `target_alignment="origin"` alone.
      target_alignment: "stream" or "origin", see `step.episode_gradients`.
      per_example: whether every example has frame numbers of its own; see `restart`.

    Raises:
      ValueError: if a module does not fit the one below it.
    """
    shapes = network.activation_shapes(params, state, frame)
    batch = (check_examples(frame, shapes),) if per_example else ()
    shapes = shapes[:-1]
    target_shapes = (shape_of(target),) * len(shapes) if target_alignment == "origin" else ()
    return InFlight(
        activations=zeros(shapes),
        pseudo_gradients=zeros(shapes),
        # Two arrays: one in two places could not be donated.
        activation_frames=no_frames(network.depth, *batch),
        pseudo_gradient_frames=no_frames(network.depth, *batch),
        targets=zeros(target_shapes),
    )


def check_examples(frame: PyTree, shapes: tuple) -> int:
    """B, if every signal has an entry for each example of a batch.

    Args:
      frame: a batch of frames, or its shape.
      shapes: of `h_1 ... h_D`.

    Raises:
      ValueError: for a leaf without that axis: it could not be a bubble for one example alone.
    """
    leaves = jax.tree.leaves(frame)
    leading = jnp.shape(leaves[0])[:1] if leaves else ()  # (B,), unless there is no such axis
    batch = leading[0] if leading else None
    named = [("the frame", frame)]
    named += [(f"the output of module {i} (0-based)", shape) for i, shape in enumerate(shapes)]
    for name, tree in named:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if batch is None or jnp.shape(leaf)[:1] != leading:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} has the shape {jnp.shape(leaf)}; on a "
                    f"stream every signal needs an entry for each example, [B, ...] with "
                    f"B = {batch}: give it a batch axis"
                )
    return leading[0]


def frame_numbers(first: jax.Array | int, count: int) -> jax.Array:
    """The numbers of the next frames, int32 `[count]`; from 0 again after 2**31 - 1."""
    return following(jnp.asarray(first, jnp.int32), jnp.arange(count, dtype=jnp.int32))


def following(number: jax.Array, count: jax.Array | int) -> jax.Array:
    """`number + count`, and from 0 again after 2**31 - 1: a number below 0 is a bubble.

    >>> following(jnp.int32(2**31 - 1), 1)
    Array(0, dtype=int32)
    """
    return (number + jnp.asarray(count, jnp.int32)) & jnp.int32(2**31 - 1)


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


class Numbers(NamedTuple):
    """Which frame every module works on at a step; a leading axis K for several steps.

    What is valid follows from it: a module holds an activation where `frames >= 0`, and has a
    gradient where `origins >= 0`.
    """

    frames: jax.Array  # int32[D] or [D, B], the frame of its activation, -1 for a bubble
    origins: jax.Array  # likewise, the frame whose loss is back-propagated, -1 for none
    # Of the whole batch, also where a replica sees only its share of it:
    complete: jax.Array  # bool[D], no example is a bubble: only then the state of a module moves
    any_trained: jax.Array  # bool[D], some example has a gradient


def numbers_of(frames: jax.Array, origins: jax.Array, *, per_example: bool) -> Numbers:
    """`Numbers` of a whole batch; with `per_example` the last axis is the batch."""
    held, trained = frames >= 0, origins >= 0
    if per_example:
        return Numbers(frames, origins, held.all(-1), trained.any(-1))
    return Numbers(frames, origins, held, trained)


def tick(
    wiring: Wiring, in_flight: InFlight, frame_id: jax.Array, *, keeps_inputs: bool = False
) -> tuple[InFlight, Numbers]:
    """The clock of one computation step: frame numbers alone, the signals stay as they are.

    A signal has the number of the frame of the main path. It is a bubble until all of its parts
    have arrived: an input from all sources of the module, a pseudo-gradient from all receivers.

    Args:
      wiring: who hears whom.
      in_flight: as the step before left it.
      frame_id: int32, or `[B]`: the number of the frame that enters, -1 for none.
      keeps_inputs: whether modules back-propagate through inputs that they kept (`fifo.py`): then
        a pseudo-gradient needs no activation of now, and waits for no shortcut.

    Returns:
      `in_flight` with the numbers after the step, and what every module works on in it. Without an
      activation there is nothing to back-propagate through, so that a pseudo-gradient which meets
      a bubble counts as none.
    """
    frames = frames_heard(wiring, in_flight.activation_frames, frame_id)
    # The top module's gradient is the exact one of the activation that it just computed.
    origins = jnp.concatenate([in_flight.pseudo_gradient_frames, frames[-1:]])
    sent_down = list(origins[1:])
    if not keeps_inputs:
        origins = jnp.where(frames >= 0, origins, -1)
        by_source = [wiring.receivers(i) for i in range(wiring.depth - 1)]
        sent_down = [_main_if_all(*(origins[k] for k in heard_by)) for heard_by in by_source]
    moved = in_flight._replace(
        activation_frames=frames[:-1],
        pseudo_gradient_frames=jnp.stack(sent_down) if sent_down else origins[1:],
    )
    return moved, numbers_of(frames, origins, per_example=frames.ndim == 2)


def frames_heard(wiring: Wiring, activation_frames: jax.Array, frame_id: jax.Array) -> jax.Array:
    """The frame that every module works on, int32 `[D]` or `[D, B]`, -1 for a bubble.

    Args:
      wiring: who hears whom.
      activation_frames: `[D-1]` or `[D-1, B]`, of what was sent at the step before.
      frame_id: of the frame that enters.
    """
    sent = {FRAME: frame_id} | dict(enumerate(activation_frames))
    return jnp.stack([_main_if_all(*(sent[j] for j in sources)) for sources in wiring.sources])


def _main_if_all(main: jax.Array, *others: jax.Array) -> jax.Array:
    """The number of the main path, if all other parts of the signal are there too; else -1."""
    for other in others:
        main = jnp.where(other >= 0, main, -1)
    return main
