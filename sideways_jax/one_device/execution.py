"""The executions on one device."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import optax
from jax.sharding import Mesh

from sideways_jax.one_device import (
    backprop,
    blocking,
    online,
    replicated,
    scan,
    time_parallel,
)
from sideways_jax.rule.episode import Episode
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.streams import check_recompute
from sideways_jax.training.train_state import Training


@dataclasses.dataclass(frozen=True)
class Scan:
    """One computation step (or, with backprop, one frame) after the other in a `lax.scan`.

    Memory does not depend on the length of the clip; the execution for streams on one device.

    Attributes:
      recompute: of pipelined backprop: keep inputs, and run forward passes again (the default), or
        keep what the backward pass needs; the latter on clips, or with `stash_weights`.
      stash_weights: of pipelined backprop on streams: the backward pass of a frame uses the weights
        of its forward pass, a copy of which is kept; otherwise those of now.
      mesh: for clips: with an axis `data`, over whose devices batches are divided, and `depth` 1;
        None for one device. `make_mesh(1, data=n)` makes it.

    Raises:
      ValueError: for a mesh that divides modules.
    """

    recompute: bool | None = None
    stash_weights: bool = False
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        replicated.check(self.mesh, "scan")

    def episode(
        self,
        task: Task,
        params: tuple,
        state: tuple,
        frames: PyTree,
        targets: PyTree,
        rng: jax.Array | None,
    ) -> Episode:
        """The gradients of one episode."""
        recompute = self._checked_on_clips(task)
        one = partial(backprop.scan_episode, task)
        if task.is_pipelined:
            one = partial(scan.episode, task, recompute=recompute)
        return replicated.episode(self.mesh, task.network, one, params, state, frames, targets, rng)

    def training(self, task: Task, tx: optax.GradientTransformation) -> Training:
        """Training with one update per episode."""
        self._checked_on_clips(task)
        return replicated.make_training(self.mesh, task, tx, partial(self.episode, task))

    def stream_training(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        *,
        update_every: int,
        with_outputs: bool,
    ) -> Training:
        """A pipeline with updates within the stream, or backprop that blocks and drops frames.

        Raises:
          ValueError: for a mesh, and for backprop with `update_every` other than 1: it blocks for
            2D-1 frames.
        """
        if self.mesh is not None:
            raise ValueError(
                f"update_every={update_every}: execution='scan' divides batches of clips over a "
                "mesh, not those of streams; leave out its mesh, or divide the modules with "
                "execution='program_per_device' or 'depth_sharded'"
            )
        recompute = self._checked(task)
        if task.is_pipelined:
            if not self.stash_weights:
                check_recompute(self.recompute, update_every)
            return online.make_training(
                task, tx, update_every=update_every, with_outputs=with_outputs,
                recompute=recompute, stash_weights=self.stash_weights,
            )  # fmt: skip
        if update_every != 1:
            raise ValueError(
                f"update_every={update_every} with rule='backprop': on a stream it takes one frame "
                f"of 2D-1 = {2 * task.depth - 1} and makes an update for each; set update_every=1"
            )
        return blocking.make_training(task, tx, with_outputs=with_outputs)

    def _checked(self, task: Task) -> bool:
        """Whether inputs are kept; ValueError for an option that is given where nothing is kept."""
        for name, given in (
            ("recompute", self.recompute is not None),
            ("stash_weights", self.stash_weights),
        ):
            if given and not task.remembers:
                raise ValueError(
                    f"{name}={getattr(self, name)}: on one device only rule='pipelined_backprop' "
                    "keeps something of a frame; leave it out"
                )
        return self.recompute is not False

    def _checked_on_clips(self, task: Task) -> bool:
        """As `_checked`; ValueError for `stash_weights`, too: weights are constant on a clip."""
        if self.stash_weights:
            raise ValueError(
                "stash_weights=True is for streams, whose weights change between the passes of a "
                "frame: set update_every, or leave it out"
            )
        return self._checked(task)


@dataclasses.dataclass(frozen=True)
class TimeParallel:
    """Module after module, each with all frames of an episode at once: the fast one for clips.

    Attributes:
      mesh: with an axis `data`, over whose devices batches are divided, and `depth` 1; None for one
        device. `make_mesh(1, data=n)` makes it.

    Raises:
      ValueError: for a mesh that divides modules.
    """

    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        replicated.check(self.mesh, "time_parallel")

    def episode(
        self,
        task: Task,
        params: tuple,
        state: tuple,
        frames: PyTree,
        targets: PyTree,
        rng: jax.Array | None,
    ) -> Episode:
        """The gradients of one episode."""
        one = partial(time_parallel.episode, task)
        return replicated.episode(self.mesh, task.network, one, params, state, frames, targets, rng)

    def training(self, task: Task, tx: optax.GradientTransformation) -> Training:
        """Training with one update per episode."""
        return replicated.make_training(self.mesh, task, tx, partial(self.episode, task))

    def stream_training(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        *,
        update_every: int,
        with_outputs: bool,
    ) -> Training:
        """Raises ValueError: frames of a stream are not all there at once."""
        del task, tx, with_outputs
        raise ValueError(
            f"update_every={update_every} changes the weights between computation steps, and "
            "execution='time_parallel' computes all frames with the same; set execution='scan' or "
            "'depth_sharded'"
        )
