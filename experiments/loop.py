"""The training loop: steps, and what happens between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import grain
import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments.checkpoints import Checkpoints
from experiments.evaluate import Evaluation
from experiments.metrics_log import MetricsLog
from experiments.progress import Clock, Progress
from experiments.stopping import NonFiniteError, Stopped, StopSignal, check_finite
from sideways_jax.step import TrainState


class Job(NamedTuple):
    """What the loop works with."""

    options: ConfigDict  # config.train
    train_step: Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]
    batches: grain.DatasetIterator
    put: Callable[[dict], dict]  # hands a batch to the devices
    fetching: Callable[[], AbstractContextManager]  # around every `next(batches)`
    test_batches: Callable[[], Iterable[dict]]
    # None if there are no test videos.
    evaluate: Callable[[TrainState, Iterable[dict], Collection[int]], Evaluation] | None
    schedule: Callable[[int], jax.Array]  # the learning rate of the update number 0, 1, ...
    steps_per_epoch: int
    shown: Collection[int]  # test videos that are wanted back from the last evaluation
    checkpoints: Checkpoints
    log: MetricsLog
    progress: Progress
    stop: StopSignal


class Result(NamedTuple):
    """What a finished loop leaves."""

    train_state: TrainState
    step: int  # the last one; fewer than were asked for when a stream ended
    evaluation: Evaluation | None  # after the last step; None without test videos
    steps_per_second: float | None  # of training alone; None if there was nothing left to train


def go_on(
    checkpoints: Checkpoints,
    train_state: TrainState,
    batches: grain.DatasetIterator,
    num_steps: int,
    console: Console,
) -> tuple[TrainState, int, list[dict[str, float]]]:
    """Where the last session stopped, if there was one: `(train_state, step, window)`, see `run`.

    Args:
      checkpoints: of the workdir.
      train_state: a fresh one.
      batches: is moved to where it was.
      num_steps: how many are asked for.
      console: is told.

    Raises:
      ValueError: if more steps than that have been made, or with other data.
    """
    start = checkpoints.latest or 0
    if start > num_steps:
        raise ValueError(
            f"{checkpoints.directory.parent} has been trained for {start} steps already, "
            f"train.num_steps={num_steps} are fewer; use another workdir, or more steps"
        )
    if not start:
        return train_state, 0, []
    restored = checkpoints.restore(start, train_state, batches)
    console.print(f"Going on from step {start}.", highlight=False)
    return restored.train_state, start, restored.progress["window"]


def run(job: Job, train_state: TrainState, step: int, window: list[dict[str, float]]) -> Result:
    """Trains from `step`, the number of updates so far, to `job.options.num_steps`.

    Or until there are no more batches.

    The metrics of a step are looked at when the next one has been handed to the device, so that it
    never waits for the host; except before something is saved, evaluated or stopped. `window` has
    the metrics since the last line of the log; it goes into checkpoints, so that a line is the mean
    of the same steps whether the run was interrupted or not.

    Raises:
      NonFiniteError: at the first step whose loss, gradients or results are not finite. Nothing of
        it has been saved.
      Stopped: when `job.stop` is set, after saving.
    """
    options, num_steps, clock = job.options, job.options.num_steps, Clock()

    def look_at(number: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        with _advised(job.checkpoints):
            check_finite(number, values)
        del values["finite"]
        window.append(values)
        clock.count()
        speed = clock.steps_per_second
        shown = {name: value for name, value in values.items() if name != "grad_norm"}
        job.progress.update(number, shown, speed)
        if number % options.log_every == 0 or number == num_steps:
            log_line(number)
        if number % options.log_every == 0:
            window.clear()

    def log_line(number: int) -> None:
        means = {name: float(np.mean([one[name] for one in window])) for name in window[0]}
        means["learning_rate"] = float(job.schedule(number - 1))
        means["epoch"] = number / job.steps_per_epoch
        speed = clock.steps_per_second
        timing = {} if speed is None else {"steps_per_second": speed}
        job.log.write(number, "train", means, **timing)

    def save() -> None:
        job.progress.say("saving")
        job.log.flush()
        with _advised(job.checkpoints):
            job.checkpoints.save(step, train_state, job.batches, {"window": window})

    def test(shown: Collection[int] = ()) -> Evaluation | None:
        if job.evaluate is None:
            return None
        job.progress.say("evaluating")
        try:
            evaluation = job.evaluate(train_state, until_stopped(job.test_batches()), shown)
        except _Interrupted:
            save()
            raise _stopped(job.stop, step, num_steps) from None
        if step not in job.log.evaluated:
            job.log.write(step, "test", evaluation.metrics())
        return evaluation

    def due(every: int) -> bool:
        return every > 0 and step % every == 0

    def asked_to_stop() -> bool:
        # Several processes have to stop at the same step. Agreeing on it takes a message to all.
        if jax.process_count() == 1:
            return bool(job.stop)
        return due(options.log_every) and job.stop.agreed()

    def until_stopped(batches: Iterable[dict]) -> Iterable[dict]:
        return batches if jax.process_count() > 1 else _until(job.stop, batches)

    def between_steps(stop: bool) -> None:
        if stop:
            save()
            raise _stopped(job.stop, step, num_steps)
        if due(options.checkpoint_every) or step == num_steps:
            save()
        # The evaluation after the last step is made below, once, with clips to show.
        if due(options.eval_every) and step < num_steps and step not in job.log.evaluated:
            test()
        job.progress.say("training")

    if step:  # What an interrupted run did not get to.
        between_steps(stop=False)
    job.progress.say("compiling")
    waiting = None
    while step < num_steps:
        with job.fetching():
            batch = next(job.batches, None)
        if batch is None:  # A stream that has an end.
            if waiting is not None:
                look_at(*waiting)
            clock.stop()
            if not step:
                return Result(train_state, 0, None, None)
            if window:
                log_line(step)
                window.clear()  # The same command again has nothing to add to it.
            save()
            break
        if step == 0:
            job.log.write_clips("train/clips", batch["frames"], step)
        first = clock.steps_per_second is None and waiting is None
        train_state, metrics = job.train_step(train_state, job.put(batch))
        if waiting is not None:
            look_at(*waiting)
        step += 1
        waiting = step, metrics
        stop = asked_to_stop()
        pause = stop or due(options.checkpoint_every) or due(options.eval_every)
        if first or pause or step == num_steps:
            look_at(*waiting)
            waiting = None
            clock.stop()
            between_steps(stop)
            clock.start()
    clock.stop()
    return Result(train_state, step, test(job.shown), clock.steps_per_second)


class _Interrupted(Exception):
    pass


def _until(stop: StopSignal, batches: Iterable[dict]) -> Iterator[dict]:
    for batch in batches:
        if stop:
            raise _Interrupted
        yield batch


def _stopped(stop: StopSignal, step: int, num_steps: int) -> Stopped:
    return Stopped(
        f"Stopped at step {step} of {num_steps}, and saved. Run the same command again to go on.",
        stop.number,
    )


@contextmanager
def _advised(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to a NonFiniteError what is kept, and what to do."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_advice(checkpoints)}", error.step) from None


def _advice(checkpoints: Checkpoints) -> str:
    last = checkpoints.latest
    kept = (
        "No checkpoint had been saved yet"
        if last is None
        else f"The last good checkpoint, of step {last}, is kept in {checkpoints.directory}"
    )
    return (
        f"Training has stopped, nothing of this step was saved. {kept}. Try a smaller "
        "optimizer.learning_rate, more optimizer.warmup_epochs or a smaller optimizer.clip_value, "
        "in another workdir"
    )
