"""What an episode gives, whichever rule and execution computed it, and what it has to look like."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree


class Episode(NamedTuple):
    """The result of `step.episode_gradients`."""

    grads: tuple  # D pytrees like the parameters: the mean over the valid steps of each module
    num_grads: jax.Array  # int32[D], gamma_i: over how many steps that mean goes
    loss: jax.Array  # scalar, mean over valid outputs
    outputs: PyTree  # [K, B, ...], by computation step; zero where not valid
    valid: jax.Array  # bool[K], by computation step
    state: tuple  # D pytrees, after the episode


def check_clip(frames: PyTree, targets: PyTree) -> int:
    """K, the length of a clip or of a part of a stream.

    Raises:
      ValueError: unless frames and targets have the same leading axis.
    """
    num_frames = _length("frames", frames)
    num_targets = _length("targets", targets)
    if num_frames != num_targets:
        raise ValueError(
            f"there are {num_frames} frames but {num_targets} targets: both need the same leading "
            "axis K, one target for every frame (repeat the label of a clip K times)"
        )
    return num_frames


def check_batch(frames: PyTree, targets: PyTree, batch: int) -> None:
    """Raises ValueError for a leaf without the batch axis: a loss would broadcast it in silence."""
    for name, tree in (("frames", frames), ("targets", targets)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.shape(leaf)[1:2] != (batch,):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} have the shape {jnp.shape(leaf)}; they "
                    f"need [K, B, ...] with the batch B = {batch} of the frames, one entry for "
                    "every frame and example (repeat the label of a clip K times)"
                )


def check_episode(task: Task, frames: PyTree, targets: PyTree) -> int:
    """K.

    Raises:
      ValueError: unless an episode can be made of these frames and targets.
    """
    num_frames = check_clip(frames, targets)
    first = jnp.shape(jax.tree.leaves(frames)[0])
    if len(first) < 2:
        raise ValueError(f"frames have the shape {first}; they need a batch axis, [K, B, ...]")
    check_batch(frames, targets, first[1])
    shortest = 2 * task.depth - 1
    if task.is_pipelined and num_frames < shortest:
        raise ValueError(
            f"an episode of {num_frames} frames is too short for {task.depth} modules: "
            f"a pipeline needs 2D-1 = {shortest} computation steps until the lowest module gets "
            f"its first gradient. Use at least {shortest} frames, or cut the network into at most "
            f"{(num_frames + 1) // 2} modules"
        )
    return num_frames


def paired_targets(task: Task, targets: PyTree) -> PyTree:
    """Targets `[K, ...]` moved to the computation step of the output they are paired with.

    With "origin" the output of step t comes from frame t-D+1 (1-based as in section 3.4), so that
    the target of that frame moves D-1 steps later; what is left in the first D-1 places is never
    valid. The outputs of backprop are not late.
    """
    if not task.is_pipelined or task.target == "stream":
        return targets
    return jax.tree.map(lambda y: jnp.roll(y, task.depth - 1, axis=0), targets)


def _length(name: str, tree: PyTree) -> int:
    leaves = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[:1] for shape in leaves}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        shapes = ", ".join(map(str, leaves)) or "nothing"
        raise ValueError(
            f"{name} need a leading axis of K >= 1 entries, [K, B, ...]; they have {shapes}"
        )
    return lengths.pop()[0]
