"""The execution on several devices: modules spread over a mesh, all working at the same time."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import optax

from sideways_jax.pipeline import episode, online, per_episode
from sideways_jax.rule.episode import Episode
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.on_mesh import OnMesh
from sideways_jax.training.train_state import Training


@dataclasses.dataclass(frozen=True)
class Pipeline(OnMesh):
    """Every device of a mesh runs its own group of neighbouring modules, in one program.

    Attributes:
      mesh: with an axis `depth`, over whose devices modules are spread, and maybe `data`, over
        which batches are split; `make_mesh` makes it.
      groups: how many consecutive modules each device takes; None balances counted costs.
      schedule: of backprop alone, which needs one: "blocking", "gpipe" or "1f1b".
      recompute: of backprop, and of pipelined backprop on clips: keep the inputs of a frame and run
        the forward pass again (the default), or keep what the backward pass needs.

    Raises:
      ValueError: for a mesh without these axes.
    """

    name: ClassVar[str] = "depth_sharded"

    def episode(
        self,
        task: Task,
        params: tuple,
        state: tuple,
        frames: PyTree,
        targets: PyTree,
        rng: jax.Array | None,
        *,
        bubble: float = 0.0,
    ) -> Episode:
        """The gradients of one episode; `bubble` fills what has not arrived (tests put NaN)."""
        return episode.episode(
            task, self.mesh, self.schedule_of(task), self.groups, params, state, frames, targets,
            rng, bubble=bubble,
        )  # fmt: skip

    def training(self, task: Task, tx: optax.GradientTransformation) -> Training:
        """Training with one update per episode; parameters stay on the devices of their modules."""
        return per_episode.make_training(
            task, tx, mesh=self.mesh, schedule=self.schedule_of(task), groups=self.groups
        )

    def stream_training(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        *,
        update_every: int,
        with_outputs: bool,
        bubble: float = 0.0,
    ) -> Training:
        """Training on streams; parameters and signals stay on their devices.

        Raises:
          ValueError: for backprop, which blocks: on a mesh it trains on clips.
        """
        self.check_stream(task, update_every)
        self.schedule_of(task)
        return online.make_training(
            task, tx, mesh=self.mesh, groups=self.groups, update_every=update_every,
            with_outputs=with_outputs, bubble=bubble,
        )  # fmt: skip
