"""The execution with a program for every device."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import optax

from sideways_jax.device_programs import clips, streams
from sideways_jax.device_programs.clips import Options
from sideways_jax.device_programs.places import places_of
from sideways_jax.rule.episode import Episode
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.on_mesh import OnMesh
from sideways_jax.training.train_state import Training


@dataclasses.dataclass(frozen=True)
class ProgramPerDevice(OnMesh):
    """Every device of a mesh runs a program of its own; one process dispatches all of them.

    Faster than `Pipeline` on the devices of one host: nothing is padded or packed, no device
    carries what belongs to another, and any optimizer works leaf by leaf. `train_step` is not to be
    jitted. Train states have the structure that they have on one device, and arrays that are
    elsewhere are put in their place.

    With `data` > 1 in the mesh several devices share every batch; the answer is that of one device
    with the whole batch, also for batch norm and dropout.

    Attributes:
      mesh, groups, schedule, recompute: as of `Pipeline`.
      donate: whether `train_step` may take apart the train state that it is given, as
        `donate_argnums=0` of `jax.jit` does: it saves a copy of the weights.

    Raises:
      ValueError: for a mesh without these axes, or with devices of other processes.
    """

    name: ClassVar[str] = "program_per_device"

    donate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        places_of(self.mesh)

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
        return clips.episode(task, self._options(task, bubble), params, state, frames, targets, rng)

    def training(
        self, task: Task, tx: optax.GradientTransformation, *, bubble: float = 0.0
    ) -> Training:
        """Training with one update per episode; parameters stay on the devices of their modules."""
        return clips.make_training(task, tx, self._options(task, bubble))

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
        return streams.make_training(
            task, tx, self._options(task, bubble), update_every=update_every,
            with_outputs=with_outputs,
        )  # fmt: skip

    def _options(self, task: Task, bubble: float) -> Options:
        return Options(self.mesh, self.groups, self.schedule_of(task), self.donate, bubble)
