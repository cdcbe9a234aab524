"""The protocol of executions: where a task is computed.

An execution decides where modules run and in which order, never what comes out. To add one, write a
class with these three methods; for a name, add it to `step.EXECUTIONS`.
"""

from __future__ import annotations

from typing import Protocol

import jax
import optax

from sideways_jax.rule.episode import Episode
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.train_state import Training


class Execution(Protocol):
    """A way to compute a task: immutable, hashable, and compared by content."""

    def episode(
        self,
        task: Task,
        params: tuple,
        state: tuple,
        frames: PyTree,
        targets: PyTree,
        rng: jax.Array | None,
    ) -> Episode:
        """The (pseudo-)gradients of one episode, of frames and targets `[K, B, ...]` that fit.

        Raises:
          ValueError: if this execution cannot compute this task.
        """
        ...

    def training(self, task: Task, tx: optax.GradientTransformation) -> Training:
        """Training with one update per episode.

        Raises:
          ValueError: if this execution cannot compute this task.
        """
        ...

    def stream_training(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        *,
        update_every: int,
        with_outputs: bool,
    ) -> Training:
        """Training on streams, with weights that change every `update_every` frames.

        Raises:
          ValueError: if this execution cannot compute this task.
        """
        ...
