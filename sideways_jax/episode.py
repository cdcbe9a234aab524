"""What an episode gives, whichever rule and execution computed it, and what it has to look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.mesh import check_mesh
from sideways_jax.names import check_name
from sideways_jax.network import Network
from sideways_jax.schedules import SCHEDULES
from sideways_jax.trees import PyTree

LossFn = Callable[[PyTree, PyTree], jax.Array]  # (output, target) -> scalar, mean over the batch

RULES = ("sideways", "backprop")
EXECUTIONS = ("scan", "time_parallel", "depth_sharded")
TARGETS = ("stream", "origin")


class Episode(NamedTuple):
    """The result of `step.episode_gradients`."""

    grads: tuple  # D pytrees like the parameters: the mean over the valid steps of each module
    num_grads: jax.Array  # int32[D], gamma_i: over how many steps that mean goes
    loss: jax.Array  # scalar, mean over valid outputs
    outputs: PyTree  # [K, B, ...], by computation step; zero where not valid
    valid: jax.Array  # bool[K], by computation step
    state: tuple  # D pytrees, after the episode


def check_names(rule: str, execution: str, target: str) -> None:
    """Raises ValueError, with the closest valid name, for a name that is none."""
    check_name("rule", rule, RULES)
    check_name("execution", execution, EXECUTIONS)
    check_name("target", target, TARGETS)


def check_devices(rule: str, execution: str, mesh, schedule: str | None) -> None:
    """Raises ValueError unless a mesh and a schedule are there exactly where they are used."""
    if execution != "depth_sharded":
        for name, value in (("mesh", mesh), ("schedule", schedule)):
            if value is not None:
                raise ValueError(
                    f"{name}={value!r}: execution={execution!r} runs on one device and takes no "
                    f"{name}; leave it out, or set execution='depth_sharded'"
                )
        return
    check_mesh(mesh)
    if rule == "backprop":
        check_name("schedule", schedule, SCHEDULES)
    elif schedule is not None:
        raise ValueError(f"schedule={schedule!r}: Sideways is its own schedule; leave it out")


def check_episode(network: Network, frames: PyTree, targets: PyTree, rule: str) -> None:
    """Raises ValueError unless an episode can be made of these frames and targets."""
    num_frames = _length("frames", frames)
    num_targets = _length("targets", targets)
    if num_frames != num_targets:
        raise ValueError(
            f"there are {num_frames} frames but {num_targets} targets: both need the same leading "
            "axis K, one target for every frame (repeat the label of a clip K times)"
        )
    shortest = 2 * network.depth - 1
    if rule == "sideways" and num_frames < shortest:
        raise ValueError(
            f"an episode of {num_frames} frames is too short for {network.depth} modules: "
            f"Sideways needs 2D-1 = {shortest} computation steps until the lowest module gets its "
            f"first gradient. Use at least {shortest} frames, or cut the network into at most "
            f"{(num_frames + 1) // 2} modules"
        )


def align_targets(targets: PyTree, depth: int, target: str) -> PyTree:
    """Targets `[K, ...]` moved to the computation step of the output they are paired with.

    With "origin" the output of step t comes from frame t-D+1 (1-based as in section 3.4), so that
    frame's target moves D-1 steps later; what is left in the first D-1 places is never valid.
    """
    if target == "stream":
        return targets
    return jax.tree.map(lambda y: jnp.roll(y, depth - 1, axis=0), targets)


def _length(name: str, tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves) or "nothing"
        raise ValueError(
            f"{name} need a leading axis of K >= 1 entries, [K, B, ...]; they have {shapes}"
        )
    return lengths.pop()
