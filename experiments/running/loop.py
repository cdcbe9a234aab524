"""The training loop: steps, and what happens between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments.running.best import BestCheckpoint, agreed
from experiments.running.protocol import Evaluation, Job, Result
from experiments.running.stopping import (
    Agreement,
    NonFiniteError,
    Stopped,
    StopSignal,
    check_finite,
)
from experiments.terminal.progress import Clock, Progress
from experiments.workdir.checkpoints import Checkpoints, DamagedError
from experiments.workdir.metrics_log import MetricsLog
from sideways_jax.step import TrainState

_PLAIN = {"highlight": False, "markup": False, "soft_wrap": True}
ASKED_IN_TESTS = 1000  # test batches, at most, from one question whether to stop to the next


class Session(NamedTuple):
    """What a run works with in its workdir, from its start to its end."""

    folder: Path  # the workdir; for processes other than the first, a temporary one
    checkpoints: Checkpoints
    best: BestCheckpoint
    log: MetricsLog
    progress: Progress
    stop: StopSignal


class Position(NamedTuple):
    """Where a run is between two steps."""

    train_state: TrainState
    step: int  # of the training loop, so far
    # The metrics since the last line of the log. They go into checkpoints, so that a line is the
    # mean of the same steps whether the run was interrupted or not.
    window: list[dict[str, float]]


def go_on(
    checkpoints: Checkpoints,
    train_state: TrainState,
    batches: grain.DatasetIterator,
    num_steps: int,
    console: Console,
) -> Position:
    """Where the last session stopped, by the newest checkpoint that is whole; or the beginning.

    Args:
      checkpoints: of the workdir.
      train_state: a fresh one.
      batches: is moved to where it was.
      num_steps: how many are asked for.
      console: is told.

    Raises:
      ValueError: if more steps than that have been made, with other data, or if there are
        checkpoints and none is whole.
    """
    start = checkpoints.latest or 0
    if start > num_steps:
        raise ValueError(
            f"{checkpoints.directory.parent} has been trained for {start} steps already, "
            f"train.num_steps={num_steps} are fewer; use another workdir, or more steps"
        )
    damaged: dict[int, DamagedError] = {}
    for step in checkpoints.steps:
        try:
            restored = checkpoints.restore(step, train_state, batches)
        except DamagedError as error:
            damaged[step] = error
            continue
        if damaged:
            folder = checkpoints.set_aside(list(damaged))
            console.print(
                *damaged.values(),
                f"Going back from step {start} to step {step}, the newest checkpoint that is "
                f"whole; the {start - step} steps after it are lost, and made again. What is "
                f"damaged is in {folder} now.", sep="\n", **_PLAIN
            )  # fmt: skip
        console.print(f"Going on from step {step}.", highlight=False)
        return Position(restored.train_state, step, restored.progress["window"])
    if damaged:
        raise ValueError(
            f"no checkpoint is whole: {'; '.join(map(str, damaged.values()))}. Put the files back; "
            f"or remove {checkpoints.directory}, to start from the beginning"
        )
    return Position(train_state, 0, [])


def run(
    options: ConfigDict,
    job: Job,
    session: Session,
    batches: grain.DatasetIterator,
    position: Position,
) -> Result:
    """Trains from `position` to `options.num_steps`, or until there are no more batches.

    The metrics of a step are looked at when the next one has been handed to the device, so that it
    never waits for the host; except before something is saved, evaluated or stopped.

    Args:
      options: `config.train`.
      job: what is learned.
      session: of its workdir.
      batches: that the job opened, at `position`.
      position: where to begin, see `go_on`.

    Raises:
      NonFiniteError: at the first step whose loss, gradients or results are not finite. Nothing of
        it has been saved.
      Stopped: when `session.stop` is set, after saving.
    """
    return _Loop(options, job, session, batches, position).run()


class _Loop:
    def __init__(self, options, job, session, batches, position):
        self._options, self._job, self._session, self._batches = options, job, session, batches
        self._train_state, self._step, self._window = position
        self._clock = Clock()
        self._agreement = Agreement(session.stop)
        self._train_step = job.train_step
        if job.is_jitted:
            self._train_step = jax.jit(job.train_step, donate_argnums=0)

    def run(self) -> Result:
        """All steps that are left."""
        if self._step:  # What an interrupted run did not get to.
            self._between_steps(stop=False)
        with ExitStack() as stack:
            # Before the first step there is nothing to save: Ctrl-C ends the compilation.
            return self._steps(partial(stack.enter_context, self._session.stop))

    def _steps(self, listen: Callable[[], object]) -> Result:
        num_steps, clock = self._options.num_steps, self._clock
        self._session.progress.say("compiling")
        waiting, listens = None, False
        while self._step < num_steps:
            with self._job.fetching():
                batch = next(self._batches, None)
            if batch is None:  # A stream that has an end.
                if waiting is not None:
                    self._look_at(*waiting)
                clock.stop()
                if not self._step:
                    return self._result(None, None)
                self._close_the_log()
                self._save()
                break
            if self._step == 0:
                self._session.log.write_clips("train/clips", batch["frames"], 0)
            first = clock.steps_per_second is None and waiting is None
            self._train_state, metrics = self._train_step(self._train_state, self._job.put(batch))
            if waiting is not None:
                self._look_at(*waiting)
            self._step += 1
            waiting = self._step, metrics
            stop = self._asked_to_stop()
            pause = stop or self._due(self._options.checkpoint_every, self._options.eval_every)
            if first or pause or self._step == num_steps:
                self._look_at(*waiting)
                waiting = None
                if not listens:
                    listen()
                    listens = True
                clock.stop()
                self._between_steps(stop)
                clock.start()
        clock.stop()
        return self._result(self._test(last=True), clock.steps_per_second)

    def _result(self, evaluation: Evaluation | None, speed: float | None) -> Result:
        failure = getattr(self._batches, "failure", None)
        best = self._session.best.found
        return Result(self._train_state, self._step, evaluation, best, speed, failure)

    def _look_at(self, number: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        with _advised(self._session.checkpoints):
            check_finite(number, values)
        del values["finite"]
        self._window.append(values)
        self._clock.count()
        # The means since the last line of the log: what is printed with a line is what is in it.
        shown = {name: value for name, value in self._means().items() if name != "grad_norm"}
        self._session.progress.update(number, shown, self._clock.steps_per_second)
        if number % self._options.log_every == 0 or number == self._options.num_steps:
            self._write_line(number)
        if number % self._options.log_every == 0:
            self._window.clear()

    def _means(self) -> dict[str, float]:
        window = self._window
        return {name: float(np.mean([one[name] for one in window])) for name in window[0]}

    def _write_line(self, number: int) -> None:
        means, speed = self._means(), self._clock.steps_per_second
        means["learning_rate"] = float(self._job.learning_rate(number - 1))
        means["epoch"] = number / self._job.steps_per_epoch
        timing = {} if speed is None else {"steps_per_second": speed}
        self._session.log.write(number, "train", means, **timing)

    def _close_the_log(self) -> None:
        if self._window:
            self._write_line(self._step)
            self._window.clear()  # The same command again has nothing to add to it.

    def _save(self) -> None:
        session, progress = self._session, {"window": self._window}
        session.progress.say("saving")
        session.stop.waits_for = f"the checkpoint of step {self._step} is being written"
        session.log.flush()
        with _advised(session.checkpoints):
            session.checkpoints.save(self._step, self._train_state, self._batches, progress)

    def _test(self, *, last: bool = False) -> Evaluation | None:
        job, session, step = self._job, self._session, self._step
        if job.evaluate is None:
            return None
        session.progress.say("evaluating")
        batches = _until(Agreement(session.stop), job.test_batches())
        try:
            evaluation = job.evaluate(self._train_state, batches, last=last, folder=session.folder)
        except _Interrupted:
            self._save()
            raise self._stopped() from None
        if not self._evaluated():
            is_best = self._keep_if_best(evaluation.score())
            session.log.write(step, "test", evaluation.metrics())
            session.progress.tested(step, evaluation.metrics(), is_best)
        return evaluation

    def _evaluated(self) -> bool:
        """Whether this step was. Of earlier sessions only the first process knows."""
        return bool(agreed(self._step in self._session.log.evaluated))

    def _keep_if_best(self, score: float) -> bool:
        best = self._session.best
        score = agreed(score)
        if not best.is_beaten_by(score):
            return False
        self._session.progress.say("saving")
        with _advised(self._session.checkpoints):
            best.save(self._step, score, self._train_state, self._batches, self._window)
        return True

    def _due(self, *intervals: int) -> bool:
        return any(every > 0 and self._step % every == 0 for every in intervals)

    def _asked_to_stop(self) -> bool:
        log_every = self._options.log_every
        return self._agreement.reached(log_every - self._step % log_every)

    def _between_steps(self, stop: bool) -> None:
        options, step = self._options, self._step
        if stop:
            self._save()
            raise self._stopped()
        if self._due(options.checkpoint_every) or step == options.num_steps:
            self._save()
        # The evaluation after the last step is made at the end, once, with examples to show.
        if self._due(options.eval_every) and step < options.num_steps and not self._evaluated():
            self._test()
        if jax.process_count() == 1 and self._session.stop:  # While this was saved.
            self._save()
            raise self._stopped()
        self._session.progress.say("training")

    def _stopped(self) -> Stopped:
        return Stopped(
            f"Stopped at step {self._step} of {self._options.num_steps}, and saved. Run the same "
            "command again to go on.",
            self._session.stop.number,
        )


class _Interrupted(Exception):
    pass


def _until(agreement: Agreement, batches: Iterable[dict]) -> Iterator[dict]:
    for batch in batches:
        if agreement.reached(ASKED_IN_TESTS):
            raise _Interrupted
        yield batch


@contextmanager
def _advised(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to a NonFiniteError what is kept, and what to do."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_advice(checkpoints)}", error.step) from None


def _advice(checkpoints: Checkpoints) -> str:
    last = checkpoints.latest
    kept, where = (
        ("No checkpoint had been saved yet", "in this workdir, too")
        if last is None
        else (
            f"The last good checkpoint, of step {last}, is kept in {checkpoints.directory}",
            "in another workdir",
        )
    )
    return (
        f"Training has stopped, nothing of this step was saved. {kept}. Try a smaller "
        "optimizer.learning_rate, more optimizer.warmup_epochs or a smaller optimizer.clip_value, "
        f"{where}"
    )
