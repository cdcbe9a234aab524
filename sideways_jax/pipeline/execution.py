"""The execution on several devices: modules spread over a mesh, all working at the same time."""

from __future__ import annotations

import dataclasses
import operator

import jax
import optax
from jax.sharding import Mesh

from sideways_jax.devices.mesh import check_mesh
from sideways_jax.devices.module_groups import from_sizes
from sideways_jax.pipeline import episode, online, per_episode
from sideways_jax.pipeline.episode import Schedule
from sideways_jax.rule.episode import Episode
from sideways_jax.rule.schedules import SCHEDULES
from sideways_jax.rule.task import Task
from sideways_jax.tools.names import check_name
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.streams import check_recompute
from sideways_jax.training.train_state import Training


@dataclasses.dataclass(frozen=True)
class Pipeline:
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

    mesh: Mesh
    groups: tuple[int, ...] | None = None
    schedule: str | None = None
    recompute: bool | None = None

    def __post_init__(self) -> None:
        check_mesh(self.mesh)
        if self.groups is None:
            return
        try:
            object.__setattr__(self, "groups", tuple(operator.index(n) for n in self.groups))
        except TypeError:
            raise ValueError(
                f"groups={self.groups!r}: give how many consecutive modules each device takes, "
                "such as (2, 4)"
            ) from None

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

    def check_stream(self, task: Task, update_every: int) -> None:
        """Raises ValueError for what trains on clips alone."""
        if task.remembers:
            check_recompute(self.recompute, update_every)
        if task.rule == "backprop":
            raise ValueError(
                f"update_every={update_every} with rule='backprop' is for one device, set "
                "execution='scan': on a mesh backprop trains on clips, with update_every=None"
            )

    def schedule_of(self, task: Task) -> Schedule:
        """The order of backprop's passes, and what is kept.

        Raises:
          ValueError: unless `schedule` and `recompute` are there exactly where they are used, and
            if the groups do not use up the modules.
        """
        if self.groups is not None:
            from_sizes(self.groups, task.depth, check_mesh(self.mesh)[1])
        if task.rule == "backprop":
            if self.schedule is None:
                raise ValueError(
                    "rule='backprop' on a mesh needs the order of its passes: set schedule to one "
                    f"of {', '.join(map(repr, SCHEDULES))}"
                )
            check_name("schedule", self.schedule, SCHEDULES)
            return Schedule(self.schedule, self.recompute is not False)
        if self.schedule is not None:
            raise ValueError(
                f"schedule={self.schedule!r}: rule={task.rule!r} has its own schedule; leave it out"
            )
        if task.remembers:
            return Schedule(None, self.recompute is not False)
        if self.recompute is not None:
            raise ValueError(
                f"recompute={self.recompute}: Sideways keeps nothing of a frame that it could "
                "compute again; leave it out, or set rule='pipelined_backprop' or 'backprop'"
            )
        return Schedule()
