"""The other job: an auto-encoder learns a stream of frames as it arrives (sections 4.1 and 4.5).

One step of the training loop is a chunk of K frames of each of B streams. Within a chunk the
weights change as `config.online` says; the pipeline continues from chunk to chunk. As in the main
job, the same command resumes from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from data import Streams, load_streams
from experiments.configs.common import DTYPES
from experiments.jobs.autoencoding import report, rules
from experiments.jobs.autoencoding.chunks import Chunks
from experiments.jobs.autoencoding.score import Scores, StreamScore
from experiments.running import learned, run, starting
from experiments.running.checks import all_finite
from experiments.running.execution import Execution, choose, conversions, on_this_process
from experiments.running.optimizer import make_schedule, make_tx, params_for_tests
from experiments.running.protocol import Job, Result
from experiments.workdir import checkpoints
from experiments.workdir.classes import Classes
from sideways_jax import Network, models
from sideways_jax.models.autoencoder import pixels, squared_error
from sideways_jax.tools.names import check_name
from sideways_jax.training.train_state import new_train_state

UPDATES_PER_EPOCH = 1000  # a stream has no epochs; schedules count in thousands of updates


class StreamEvaluation(NamedTuple):
    """The scores over the test streams, and some of their middle frames with the outputs."""

    scores: Scores
    shown: report.ShownFrames
    # The error of repeating the frame of now, where the target is a frame of the future.
    repeated_mse: float | None = None

    def metrics(self) -> dict[str, float]:
        """The numbers, for the log."""
        repeated = {} if self.repeated_mse is None else {"repeated_mse": self.repeated_mse}
        return self.scores._asdict() | repeated

    def score(self) -> float:
        """The less error, the better."""
        return -self.scores.streaming_mse


def train_and_evaluate(
    config: ConfigDict, workdir: os.PathLike[str] | str, console: Console | None = None
) -> report.StreamSummary:
    """Learns from `config.train.num_steps` chunks, or until the stream ends, and tests.

    Args:
      config: with the fields of `experiments/configs/autoencoder.py`.
      workdir: for the files of `experiments.running.run`, `strips/`, `summary.json`,
        `training_curves.png` and `middle_frames.png`.
      console: for progress and results; the standard output by default.

    Raises:
      ValueError: for an invalid config, or another one than that of this workdir; and, after the
        results so far are written, for a stream that failed.
      NonFiniteError, Stopped: as `experiments.running.run.run` does.
    """
    return run.run(prepare, config, workdir, console)


def prepare(config: ConfigDict, workdir: Path) -> Job:
    """Makes the job.

    Raises:
      ValueError: for a config whose values are invalid or do not fit together.
    """
    update_every, chunk = config.online.update_every, config.online.chunk
    _check_online(update_every, chunk)
    if config.optimizer.accumulate != 1:
        raise ValueError(
            f"optimizer.accumulate={config.optimizer.accumulate}: a stream accumulates by "
            "online.update_every"
        )
    network, note = _start(config, workdir)
    execution = _choose(config, network.depth)
    if config.test_streams:
        _check_test(config.data, config.seed)
    tx = make_tx(config.optimizer, UPDATES_PER_EPOCH)
    init, learn = rules.make_learning(
        config.rule,
        network,
        squared_error(config.model.pixel_range),
        tx,
        update_every=update_every,
        target=config.target,
        **execution.arguments(),
    )
    frame = frame_shape(config.data)
    to_modules, from_modules = conversions(execution, network, tx, frame)
    per_step = chunk / rules.frames_per_update(config.rule, network.depth, update_every)
    schedule = make_schedule(config.optimizer, UPDATES_PER_EPOCH)
    evaluate = make_evaluate(config, network, to_modules) if config.test_streams else None

    def init_on_frames(key):
        return init(key, frame, frame)

    key = jax.random.key(config.seed)
    # Raises ValueError if the network does not fit the frames.
    if execution.is_jitted:
        jax.eval_shape(init_on_frames, key)
    return Job(
        config=config,
        classes=Classes(),
        introduction=_introduction(config, network, execution) + (f"\n{note}" if note else ""),
        init=lambda: (jax.jit(init_on_frames) if execution.is_jitted else init_on_frames)(key),
        train_step=on_chunks(learn),
        is_jitted=execution.is_jitted,
        to_modules=to_modules,
        from_modules=from_modules,
        open_batches=lambda: Chunks(_streams(config.data, config.seed, "train"), chunk),
        put=lambda batch: execution.put(_share(batch, execution)),
        fetching=contextlib.nullcontext,
        test_batches=lambda: _test_chunks(_streams(config.data, config.seed, "test"), chunk),
        evaluate=evaluate,
        learning_rate=lambda step: schedule(int(step * per_step)),
        steps_per_epoch=UPDATES_PER_EPOCH / per_step,
        finish=_make_finish(config, execution.described(config.schedule)),
    )


def make_network(options: ConfigDict) -> Network:
    """The auto-encoder of `config.model`."""
    check_name("model.dtype", options.get("dtype", "float32"), DTYPES)
    arguments = options.to_dict()
    del arguments["name"]
    return models.autoencoder(**arguments)


def _start(config: ConfigDict, workdir: Path) -> starting.Start:
    """The network, with the weights of the run `init_from`, if there is one to start from."""
    network, frame = make_network(config.model), frame_shape(config.data)
    if not config.init_from or starting.is_going_on(workdir):
        return starting.Start(network, "")
    there = starting.check_other(config.init_from, config.task, workdir)
    folder = checkpoints.find(Path(config.init_from).expanduser(), "last")
    variables = learned.read(folder, there, make_network(there.model), frame_shape(there.data))
    other = starting.Other(config.init_from, int(folder.name), there.model, variables)
    return starting.from_run(other, config.model, network, frame, jax.random.key(config.seed))


def frame_shape(data: ConfigDict) -> jax.ShapeDtypeStruct:
    """A batch of frames of `config.data`."""
    return jax.ShapeDtypeStruct((data.batch_size, data.size, data.size, 3), jnp.uint8)


def on_chunks(learn: Callable) -> Callable:
    """`train_step(train_state, batch) -> (train_state, metrics)` for the batches of `Chunks`.

    The target of a frame is the frame itself, or what the batch has as "targets".

    Args:
      learn: the train step of `rules.make_learning`.

    The metrics are "loss" (the output at a step against the frame that it is paired with), "lag"
    (of the outputs, in steps), "grad_norm" and "finite".
    """

    def train_step(train_state, batch):
        frames, reset = batch["frames"].swapaxes(0, 1), batch["reset"].T
        targets = batch["targets"].swapaxes(0, 1) if "targets" in batch else frames
        first = train_state.frames
        train_state, metrics, outputs = learn(train_state, frames, targets, reset)
        shown = outputs.frames >= 0
        now = (first + jnp.arange(reset.shape[0], dtype=jnp.int32))[:, None]
        lags = jnp.where(shown, now - outputs.frames, 0)
        metrics["lag"] = jnp.sum(lags) / jnp.maximum(jnp.sum(shown), 1)
        return train_state, metrics | {"finite": all_finite(train_state)}

    return train_step


def make_evaluate(config: ConfigDict, network: Network, to_modules: Callable) -> Callable:
    """`Job.evaluate`: scores on the test streams with constant weights, and a strip."""
    start, show = rules.make_showing(config.rule, network)
    show, frame = jax.jit(show), frame_shape(config.data)
    pixel_range, count_missing = config.model.pixel_range, config.eval.count_missing

    def evaluate(train_state, chunks, *, last, folder) -> StreamEvaluation:
        del last
        modules = to_modules(train_state)
        learned = params_for_tests(modules.params, modules.opt_state)
        params, state = on_this_process((learned, modules.state))
        carry = start(params, state, frame)
        score, repeating = (StreamScore(pixel_range, count_missing=count_missing) for _ in range(2))
        middle = report.MiddleFrames()
        for chunk in chunks:
            frames = chunk["frames"].swapaxes(0, 1)
            carry, outputs = show(params, state, carry, frames, chunk["reset"].T)
            wanted = chunk.get("targets", chunk["frames"]).swapaxes(0, 1)
            score.add(outputs, wanted, chunk["playing"].T)
            if "targets" in chunk:
                now = outputs._replace(outputs=pixels(jnp.asarray(frames), pixel_range))
                repeating.add(now, wanted, chunk["playing"].T)
            middle.add(frames[:, 0], np.asarray(outputs.outputs[:, 0]), chunk["reset"][0])
        scores = score.result()
        if scores is None:
            raise ValueError(
                f"no output was shown on the test streams: they have fewer than D={network.depth} "
                "frames; make data.length larger"
            )
        shown = middle.result(pixel_range)
        strip = folder / "strips" / f"after-{int(train_state.frames):06d}-frames.png"
        report.save_strip(report.draw_strip(shown), strip)
        repeated = repeating.result()
        return StreamEvaluation(scores, shown, repeated and repeated.streaming_mse)

    return evaluate


def evaluate_saved(
    config: ConfigDict,
    data: ConfigDict,
    network: Network,
    params: tuple,
    state: tuple,
    folder: Path,
) -> StreamEvaluation:
    """Tests what a run has learned on the test streams of `data`; a strip goes into the folder."""
    config = ConfigDict(config.to_dict())
    config.data = data
    evaluate = make_evaluate(config, network, lambda train_state: train_state)
    learned = new_train_state(params, state, (), (), ())
    chunks = _test_chunks(_streams(data, config.seed, "test"), config.online.chunk)
    return evaluate(learned, chunks, last=True, folder=folder)


def _make_finish(config: ConfigDict, execution: str) -> Callable:
    """`Job.finish`: the summary, its pictures, and the error of a stream that failed."""
    rule, chunk, batch_size = config.rule, config.online.chunk, config.data.batch_size

    def finish(result: Result, workdir: Path, console: Console | None) -> report.StreamSummary:
        if not result.step:
            raise ValueError(
                f"{config.data.name} ended before {chunk} frames had come"
                + (f" ({result.failure})" if result.failure else "")
                + ": set online.chunk to fewer"
            )
        evaluation, speed = result.evaluation, result.steps_per_second
        summary = report.StreamSummary(
            rule=rule,
            execution=execution,
            frames=result.step * chunk * batch_size,
            scores=evaluation and evaluation.scores,
            frames_per_second=speed and speed * chunk,
            workdir=os.fspath(workdir),
            best_mse=result.best and -result.best.score,
            best_step=result.best and result.best.step,
        )
        if console is not None:
            report.write(summary, evaluation and evaluation.shown, workdir)
            report.print_table(summary, console)
        if result.failure is not None:
            raise ValueError(f"the stream failed after {result.step} chunks: {result.failure}")
        return summary

    return finish


def _streams(data: ConfigDict, seed: int, split: str) -> Streams:
    return load_streams(data, seed=seed, split=split)


def _test_chunks(streams: Streams, num_frames: int) -> Iterator[dict]:
    with contextlib.closing(Chunks(streams, num_frames, keep_rest=True)) as chunks:
        yield from chunks
        if chunks.failure is not None:
            raise ValueError(f"the test stream failed: {chunks.failure}")


def _check_online(update_every: int, chunk: int) -> None:
    if update_every < 1:
        raise ValueError(f"online.update_every={update_every} must be at least 1")
    if chunk < 1 or chunk % update_every:
        raise ValueError(
            f"online.chunk={chunk} frames have to be a multiple of "
            f"online.update_every={update_every}"
        )


def _check_test(data: ConfigDict, seed: int) -> None:
    """Raises ValueError, before anything is trained, if there is nothing to test on."""
    try:
        _streams(data, seed, "test").close()
    except ValueError as error:
        raise ValueError(f"{error}; or test on nothing, --config.test_streams=False") from error


def _share(batch: dict[str, np.ndarray], execution: Execution) -> dict[str, np.ndarray]:
    """The rows of this process: every process plays all streams, and feeds its share of them."""
    rows = len(batch["reset"]) // execution.num_shares
    start = execution.share * rows
    return {name: values[start : start + rows] for name, values in batch.items()}


def _choose(config: ConfigDict, depth: int) -> Execution:
    execution = choose(config, depth, streams=True)
    if config.rule == "backprop" and execution.mesh is not None:
        raise ValueError(
            "rule='backprop' on a stream blocks, and runs on one device: set execution='scan'"
        )
    return execution


def _introduction(config: ConfigDict, network: Network, execution: Execution) -> str:
    params, _ = jax.eval_shape(network.init, jax.random.key(0), frame_shape(config.data))
    size = sum(x.size for x in jax.tree.leaves(params))
    return (
        f"{config.rule} ({execution.chosen(config.execution)}) with an auto-encoder, "
        f"{network.depth} modules, {size:,} parameters, on {jax.devices()[0].device_kind}; "
        f"{config.data.batch_size} streams of {config.data.name}, "
        f"{config.data.size}x{config.data.size}, {config.online.chunk} frames a step."
    )
