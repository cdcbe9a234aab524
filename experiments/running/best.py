"""The checkpoint with the best score on the test data, kept beside the newest ones."""

from __future__ import annotations

import os
from collections.abc import Callable

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.running.protocol import Best
from experiments.workdir.checkpoints import Checkpoints, DamagedError
from experiments.workdir.files import BEST
from sideways_jax.step import TrainState


class BestCheckpoint:
    """One checkpoint, in the folder `best` of the workdir; a context manager.

    Of equally good ones the first is kept, so that a run that was interrupted keeps the same.

    Args:
      workdir: the directory of the run.
      to_modules: conversion to a train state with one pytree for every module.
      check: as for `Checkpoints`.

    Attributes:
      found: which it is; None if there is none, or none that is whole.
    """

    def __init__(
        self,
        workdir: os.PathLike[str] | str,
        to_modules: Callable[[TrainState], TrainState],
        check: Callable[[int, TrainState], None],
    ):
        self._checkpoints = Checkpoints(workdir, to_modules, check=check, folder=BEST, kept=1)
        self.found: Best | None = None
        if (step := self._checkpoints.latest) is not None:
            try:
                self.found = Best(step, self._checkpoints.read_progress(step)["score"])
            except (DamagedError, KeyError):
                self._checkpoints.set_aside([step])

    def __enter__(self) -> BestCheckpoint:
        return self

    def __exit__(self, *error) -> None:
        self._checkpoints.__exit__(*error)

    def is_beaten_by(self, score: float) -> bool:
        """Whether a score is better; one that is not a number never is."""
        return score == score and (self.found is None or score > self.found.score)

    def save(
        self,
        step: int,
        score: float,
        train_state: TrainState,
        data: grain.DatasetIterator,
        window: list[dict[str, float]],
    ) -> None:
        """Saves in the place of the one before; see `Checkpoints.save`."""
        if self.found is not None and self.found.step > step:  # The run went back, or began anew.
            self._checkpoints.remove(self.found.step)
        progress = {"window": window, "score": score}
        self._checkpoints.save(step, train_state, data, progress)
        self.found = Best(step, score)


def agreed(number: float) -> float:
    """The number of the first process, in float32, in all of them; all have to call this."""
    number = np.float32(number)
    if jax.process_count() > 1:
        number = multihost_utils.broadcast_one_to_all(number)
    return float(number)
