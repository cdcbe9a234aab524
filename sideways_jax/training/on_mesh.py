"""What executions on a mesh are told, and what of it fits which rule."""

from __future__ import annotations

import dataclasses
import operator
from typing import ClassVar

from jax.sharding import Mesh

from sideways_jax.devices.mesh import check_mesh
from sideways_jax.devices.module_groups import from_sizes
from sideways_jax.rule.schedules import SCHEDULES, Schedule
from sideways_jax.rule.task import Task
from sideways_jax.tools.names import check_name
from sideways_jax.training.streams import check_recompute


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """The options of an execution that divides modules among the devices of a mesh."""

    name: ClassVar[str]  # of the execution

    mesh: Mesh
    groups: tuple[int, ...] | None = None
    schedule: str | None = None
    recompute: bool | None = None

    def __post_init__(self) -> None:
        check_mesh(self.mesh, self.name)
        if self.groups is None:
            return
        try:
            object.__setattr__(self, "groups", tuple(operator.index(n) for n in self.groups))
        except TypeError:
            raise ValueError(
                f"groups={self.groups!r}: give how many consecutive modules each device takes, "
                "such as (2, 4)"
            ) from None

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
