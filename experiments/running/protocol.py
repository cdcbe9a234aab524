"""What a run has to know of a job: what is learned, from what, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grain
import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.workdir.classes import Classes
from sideways_jax import Network
from sideways_jax.step import TrainState


class Evaluation(Protocol):
    """The result over all test data."""

    def metrics(self) -> dict[str, float]:
        """The numbers, for the log."""

    def score(self) -> float:
        """How good it is, by which the best checkpoint is kept: the larger the better."""


class Best(NamedTuple):
    """The evaluation with the best score so far, whose checkpoint is kept."""

    step: int
    score: float


class Result(NamedTuple):
    """What a finished loop leaves."""

    train_state: TrainState
    step: int  # the last one; fewer than were asked for when a stream ended
    evaluation: Evaluation | None  # after the last step; None without test data
    best: Best | None  # of all evaluations; None without any
    steps_per_second: float | None  # of training alone; None if there was nothing left to train
    failure: Exception | None  # why the batches ended too early, if they did


class Evaluate(Protocol):
    """Tests a train state."""

    def __call__(
        self, train_state: TrainState, batches: Iterable[dict], *, last: bool, folder: Path
    ) -> Evaluation:
        """Goes through `test_batches` once.

        Args:
          train_state: is only looked at.
          batches: of test data.
          last: whether this is the evaluation after the last step.
          folder: the workdir, for pictures.
        """


class Finish(Protocol):
    """Makes the summary of a run."""

    def __call__(self, result: Result, workdir: Path, console: Console | None) -> Any:
        """Returns the summary; it is written and shown by the process that has a console."""


class Job(NamedTuple):
    """A job as `run.run` takes it; `jobs` have a function `prepare` each that makes one."""

    config: ConfigDict  # what the workdir will hold
    classes: Classes  # likewise
    introduction: str  # lines for the console
    init: Callable[[], TrainState]  # makes a fresh one
    # `train_step(train_state, batch) -> (train_state, metrics)`. Metrics are numbers; "finite" says
    # whether all is that was learned. It is jitted by the loop, if it `is_jitted`; and it takes the
    # train state that it is given apart.
    train_step: Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]
    is_jitted: bool
    # To and from a train state with a pytree for each module, which is what is saved.
    to_modules: Callable[[TrainState], TrainState]
    from_modules: Callable[[TrainState], TrainState]
    open_batches: Callable[[], grain.DatasetIterator]  # training batches, closed by the loop
    put: Callable[[dict], dict]  # hands a batch to the devices
    fetching: Callable[[], AbstractContextManager]  # around every `next(batches)`
    test_batches: Callable[[], Iterable[dict]]
    evaluate: Evaluate | None  # None if there is nothing to test on
    learning_rate: Callable[[int], jax.Array]  # of the step number 0, 1, ...
    steps_per_epoch: float
    finish: Finish


class Trained(NamedTuple):
    """A network with what it has learned, on the first device."""

    network: Network  # takes frames uint8 [B, size, size, 3]
    params: tuple  # a pytree for every module
    state: tuple  # likewise
    classes: tuple[str, ...]  # names, in the order of the logits; () of a stream, which has none
    config: ConfigDict  # of the run
    step: int  # of the training loop, after which this was saved
    multi_label: bool  # whether a video may have several classes, so that each has its sigmoid
