"""The other job: an auto-encoder learns a stream of frames while it comes (sections 4.1 and 4.5).

One step of the training loop is a chunk of K frames of each of B streams. Within it weights change
as `config.online` says, and the pipeline goes on from chunk to chunk. As in the main job, the same
command again goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from data import load_streams
from experiments import loop, stream_report, stream_rules
from experiments import workdir as workdirs
from experiments.checkpoints import Checkpoints
from experiments.checks import all_finite, check_steps
from experiments.chunks import Chunks
from experiments.configs.common import DTYPES
from experiments.execution import Execution, choose, conversions, on_this_process
from experiments.metrics_log import MetricsLog
from experiments.optimisation import make_tx, schedule_options
from experiments.progress import Progress
from experiments.stopping import StopSignal
from experiments.stream_score import Scores, StreamScore
from experiments.train import described
from sideways_jax import Network, models
from sideways_jax.models.autoencoder import squared_error
from sideways_jax.names import check_name
from sideways_jax.optimizer import learning_rate_schedule

UPDATES_PER_EPOCH = 1000  # a stream has no epochs; schedules count in thousands of updates


class StreamEvaluation(NamedTuple):
    """The scores over the test streams, and some of their middle frames with what was shown."""

    scores: Scores
    shown: stream_report.ShownFrames

    def metrics(self) -> dict[str, float]:
        """The numbers, for the log."""
        return self.scores._asdict()


def train_and_evaluate(
    config: ConfigDict, workdir: os.PathLike[str] | str, console: Console | None = None
) -> stream_report.StreamSummary:
    """Learns from `config.train.num_steps` chunks, or until the stream ends, and tests.

    Args:
      config: see `experiments/configs/autoencoder.py`.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `strips/`,
        `summary.json`, `training_curves.png` and `middle_frames.png`.
      console: where progress and results are shown; the standard output by default.

    Raises:
      ValueError: for a config that makes no sense or is not the one of this workdir; and, once the
        results so far are written, for a stream that failed.
      NonFiniteError, Stopped: as in `experiments.train.train_and_evaluate`.
    """
    workdir = Path(workdir)
    console = console or Console()
    check_steps(config)
    if config.online.update_every < 1:
        raise ValueError(f"online.update_every={config.online.update_every} must be at least 1")
    if config.online.chunk < 1 or config.online.chunk % config.online.update_every:
        raise ValueError(
            f"online.chunk={config.online.chunk} frames have to be a multiple of "
            f"online.update_every={config.online.update_every}"
        )
    workdirs.check(config, workdir)
    network = make_network(config)
    execution = _choose(config, network.depth)
    if config.test_streams:
        _check_test(config)
    loss_fn = squared_error(config.model.pixel_range)
    tx = make_tx(config, UPDATES_PER_EPOCH)
    init, learn = stream_rules.make_learning(
        config.rule,
        network,
        loss_fn,
        tx,
        update_every=config.online.update_every,
        target=config.target,
        **execution.arguments,
    )
    frame = frame_shape(config)
    train_state = jax.jit(lambda key: init(key, frame, frame))(jax.random.key(config.seed))
    to_modules, from_modules = conversions(execution, network, tx, frame)
    train_step = on_chunks(config, learn)
    evaluate = _make_evaluate(config, network, to_modules)
    schedule = learning_rate_schedule(**schedule_options(config, UPDATES_PER_EPOCH))
    per_step = config.online.chunk / stream_rules.frames_per_update(
        config.rule, network.depth, config.online.update_every
    )
    with contextlib.ExitStack() as stack:
        streams = load_streams(config.data, seed=config.seed, split="train")
        batches = stack.enter_context(contextlib.closing(Chunks(streams, config.online.chunk)))
        stop = stack.enter_context(StopSignal())
        checkpoints = stack.enter_context(Checkpoints(workdir, to_modules, from_modules))
        _introduce(console, config, network, train_state)
        writes = jax.process_index() == 0
        if writes:
            workdirs.claim(config, workdir)
        else:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train_state, start, window = loop.go_on(
            checkpoints, train_state, batches, config.train.num_steps, console
        )
        log = stack.enter_context(MetricsLog(workdir, start))

        def test(train_state, test_batches: Iterable, shown) -> StreamEvaluation:
            evaluation = evaluate(train_state, test_batches, shown)
            arrived = stream_rules.frames_arrived(
                config.rule, int(train_state.step), config.online.update_every
            )
            stream_report.save_strip(
                stream_report.draw_strip(evaluation.shown),
                workdir / "strips" / f"after-{arrived:06d}-frames.png",
            )
            return evaluation

        result = loop.run(
            loop.Job(
                options=config.train,
                train_step=jax.jit(train_step, donate_argnums=0),
                batches=batches,
                put=lambda batch: execution.put(_share(batch, execution)),
                fetching=contextlib.nullcontext,
                test_batches=lambda: _test_chunks(config),
                evaluate=test if config.test_streams else None,
                schedule=lambda step: schedule(int(step * per_step)),
                steps_per_epoch=UPDATES_PER_EPOCH / per_step,
                shown=(),
                checkpoints=checkpoints,
                log=log,
                progress=stack.enter_context(
                    Progress(console, start, config.train.num_steps, config.train.log_every)
                ),
                stop=stop,
            ),
            train_state,
            start,
            window,
        )
        failure = batches.failure
    if not result.step:
        raise ValueError(
            f"{config.data.name} ended before {config.online.chunk} frames had come"
            + (f" ({failure})" if failure else "")
            + ": set online.chunk to fewer"
        )
    summary = stream_report.StreamSummary(
        rule=config.rule,
        execution=described(execution, config),
        frames=result.step * config.online.chunk * config.data.batch_size,
        scores=result.evaluation and result.evaluation.scores,
        frames_per_second=result.steps_per_second and result.steps_per_second * config.online.chunk,
        workdir=os.fspath(workdir),
    )
    if writes:
        stream_report.write(summary, result.evaluation and result.evaluation.shown, workdir)
        stream_report.print_table(summary, console)
    if failure is not None:
        raise ValueError(f"the stream failed after {result.step} chunks: {failure}")
    return summary


def make_network(config: ConfigDict) -> Network:
    """The auto-encoder of `config.model`."""
    check_name("model.dtype", config.model.get("dtype", "float32"), DTYPES)
    arguments = config.model.to_dict()
    del arguments["name"]
    return models.autoencoder(**arguments)


def frame_shape(config: ConfigDict) -> jax.ShapeDtypeStruct:
    """A batch of frames."""
    data = config.data
    return jax.ShapeDtypeStruct((data.batch_size, data.size, data.size, 3), jnp.uint8)


def on_chunks(config: ConfigDict, learn: Callable) -> Callable:
    """`train_step(train_state, batch) -> (train_state, metrics)` for what `Chunks` gives.

    The metrics are "loss" (what is shown at a step against the frame that it is paired with), "lag"
    (of what is shown, steps), "grad_norm" and "finite".
    """

    def train_step(train_state, batch):
        frames, reset = batch["frames"].swapaxes(0, 1), batch["reset"].T
        first = stream_rules.frames_arrived(
            config.rule, train_state.step, config.online.update_every
        )
        train_state, metrics, outputs = learn(train_state, frames, frames, reset)
        shown = outputs.frames >= 0
        now = (first + jnp.arange(reset.shape[0], dtype=jnp.int32))[:, None]
        lags = jnp.where(shown, now - outputs.frames, 0)
        metrics["lag"] = jnp.sum(lags) / jnp.maximum(jnp.sum(shown), 1)
        return train_state, metrics | {"finite": all_finite(train_state)}

    return train_step


def _make_evaluate(config: ConfigDict, network: Network, to_modules: Callable) -> Callable:
    """`evaluate(train_state, chunks, shown) -> StreamEvaluation`, with the weights as they are."""
    start, show = stream_rules.make_showing(config.rule, network)
    show = jax.jit(show)

    def evaluate(train_state, chunks, shown) -> StreamEvaluation:
        del shown
        modules = to_modules(train_state)
        params, state = on_this_process((modules.params, modules.state))
        carry = start(params, state, frame_shape(config))
        score = StreamScore(
            3 * network.depth,
            config.model.pixel_range,
            count_missing=config.eval.count_missing,
        )
        middle = stream_report.MiddleFrames()
        for chunk in chunks:
            frames = chunk["frames"].swapaxes(0, 1)
            carry, outputs = show(params, state, carry, frames, chunk["reset"].T)
            score.add(outputs, frames, chunk["playing"].T)
            middle.add(frames[:, 0], np.asarray(outputs.outputs[:, 0]), chunk["reset"][0])
        scores = score.result()
        if scores is None:
            raise ValueError(
                f"no output was shown on the test streams: they have fewer than D={network.depth} "
                "frames; make data.length larger"
            )
        return StreamEvaluation(scores, middle.result(config.model.pixel_range))

    return evaluate


def _test_chunks(config: ConfigDict) -> Iterable[dict]:
    streams = load_streams(config.data, seed=config.seed, split="test")
    with contextlib.closing(Chunks(streams, config.online.chunk, keep_rest=True)) as chunks:
        yield from chunks
        if chunks.failure is not None:
            raise ValueError(f"the test stream failed: {chunks.failure}")


def _check_test(config: ConfigDict) -> None:
    """Raises ValueError, before anything is trained, if there is nothing to test on."""
    try:
        load_streams(config.data, seed=config.seed, split="test").close()
    except ValueError as error:
        raise ValueError(f"{error}; or test on nothing, --config.test_streams=False") from error


def _share(batch: dict[str, np.ndarray], execution: Execution) -> dict[str, np.ndarray]:
    """The rows of this process: every process plays all streams, and feeds its share of them."""
    rows = len(batch["reset"]) // execution.num_shares
    start = execution.share * rows
    return {name: values[start : start + rows] for name, values in batch.items()}


def _choose(config: ConfigDict, depth: int) -> Execution:
    execution = choose(config, depth)
    if config.execution == "auto" and execution.mesh is None:
        execution = execution._replace(name="scan")  # Weights change between frames.
    if config.rule == "backprop" and execution.mesh is not None:
        raise ValueError(
            "rule='backprop' on a stream blocks, and runs on one device: set execution='scan'"
        )
    return execution


def _introduce(console, config, network, train_state) -> None:
    params, _ = jax.eval_shape(network.init, train_state.rng, frame_shape(config))
    size = sum(x.size for x in jax.tree.leaves(params))
    console.print(
        f"{config.rule} with an auto-encoder, {network.depth} modules, {size:,} parameters, on "
        f"{jax.devices()[0].device_kind}; {config.data.batch_size} streams of {config.data.name}, "
        f"{config.data.size}x{config.data.size}, {config.online.chunk} frames a step.",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
