"""The main job: train a network on videos, evaluate it, and write everything into a workdir.

The same experiment in the same workdir resumes from its last checkpoint; on the CPU the result is
that of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from rich.console import Console

from data import Source, classes_of, load
from experiments.examples import archives
from experiments.jobs.classification import report
from experiments.jobs.classification.accuracy import make_evaluate
from experiments.jobs.classification.losses import ONE_CLASS, Loss, make_loss
from experiments.jobs.classification.networks import frame_shape, make_network, start
from experiments.running import run
from experiments.running.checks import all_finite
from experiments.running.execution import Execution, choose, conversions, on_this_process
from experiments.running.optimizer import make_schedule, make_tx, params_for_tests
from experiments.running.protocol import Job, Result
from experiments.running.stopping import hidden_from_children
from experiments.terminal.names import printable
from experiments.workdir.classes import Classes
from sideways_jax import Network, step
from sideways_jax.devices import report as devices_report
from sideways_jax.pipeline.sideways_stage import bytes_kept
from sideways_jax.rule.task import Task

SHOWN_NAMES = 5  # of classes, in a warning
NUM_SHOWN = 8  # test clips in the picture


def train_and_evaluate(
    config: ConfigDict, workdir: os.PathLike[str] | str, console: Console | None = None
) -> report.Summary:
    """Trains, or resumes, until `config.train.num_steps`, and evaluates on the test videos.

    Args:
      config: with the fields of `experiments.configs.common.base_config`.
      workdir: for the files of `experiments.running.run`, `summary.json`, `training_curves.png` and
        `test_clips.png`.
      console: for progress and results; the standard output by default.

    Raises:
      ValueError, NonFiniteError, Stopped: as `experiments.running.run.run` does.
    """
    return run.run(prepare, config, workdir, console)


def prepare(config: ConfigDict, workdir: Path) -> Job:
    """Makes the job; example videos, if the config asks for them, go into the workdir.

    Raises:
      ValueError: for a config whose values are invalid or do not fit together.
    """
    config = archives.with_examples(config, workdir / "example_videos")
    execution = choose(config, make_network(config.model, num_classes=2).depth)
    share = {"process_index": execution.share, "process_count": execution.num_shares}
    source = load(config.data, seed=config.seed, **share)
    # Every process tests on all videos, with the same result.
    whole = source if execution.num_shares == 1 else load(config.data, seed=config.seed)
    known = Classes(source.classes, source.multi_label)
    network, note = start(config, known, workdir)
    tx = make_tx(config.optimizer, source.steps_per_epoch)
    loss = make_loss(config.loss, source)
    init, train_step = make_train_step(config, network, tx, execution, loss)
    to_modules, from_modules = conversions(execution, network, tx, frame_shape(config.data))
    key = jax.random.key(config.seed)
    _check_output(network, frame_shape(config.data), len(source.classes))
    if execution.is_jitted:  # Otherwise the first step finds what does not fit.
        jax.eval_shape(train_step, jax.eval_shape(init, key), _batch_shape(config.data, source))
        init = jax.jit(init)
    # The first batch may start worker processes.
    has_workers = config.data.num_workers > 0
    return Job(
        config=config,
        classes=known,
        introduction=_introduction(config, source, network, execution, note),
        init=lambda: init(key),
        train_step=train_step,
        is_jitted=execution.is_jitted,
        to_modules=to_modules,
        from_modules=from_modules,
        open_batches=lambda: iter(source.train),
        put=execution.put,
        fetching=hidden_from_children if has_workers else contextlib.nullcontext,
        test_batches=whole.test,
        evaluate=_make_evaluate(config.eval.average, network, whole, to_modules),
        learning_rate=make_schedule(config.optimizer, source.steps_per_epoch),
        steps_per_epoch=source.steps_per_epoch,
        finish=_make_finish(config.rule, execution.described(config.schedule), source.classes),
    )


def make_train_step(
    config: ConfigDict,
    network: Network,
    tx: optax.GradientTransformation,
    execution: Execution,
    loss: Loss = ONE_CLASS,
) -> tuple[Callable, Callable]:
    """`sideways_jax.step.make_train_step` for the batches of `data.load`.

    Returns:
      `(init, train_step)`: `init(key) -> TrainState`, and `train_step(train_state, batch) ->
      (train_state, metrics)` with a batch `{"frames": uint8 [B, K, H, W, 3], "label": int32 [B]}`,
      or the labels that the loss takes. The metrics are "loss" (per computation step), "accuracy",
      "grad_norm", and "finite": whether the whole train state is finite.
    """
    init, train_step = step.make_train_step(
        network,
        loss.loss_fn,
        tx,
        rule=config.rule,
        target=config.target,
        metrics_fn=lambda logits, label: {"accuracy": loss.accuracy(logits, label)},
        # `recompute` is of these schedules alone.
        **execution.arguments(
            config.schedule or None, config.recompute if config.schedule else None
        ),
    )
    frame = frame_shape(config.data)

    def train_on_batch(train_state, batch):
        # Time first. Frames stay uint8 until the first module normalises them.
        frames = batch["frames"].swapaxes(0, 1)
        labels = jnp.broadcast_to(batch["label"], (len(frames), *batch["label"].shape))
        train_state, metrics = train_step(train_state, frames, labels)
        return train_state, metrics | {"finite": all_finite(train_state)}

    return lambda key: init(key, frame), train_on_batch


def _make_evaluate(
    average: str, network: Network, source: Source, to_modules: Callable
) -> Callable | None:
    """`Job.evaluate`, or None if there are no test videos."""
    evaluate = make_evaluate(network, average, multi_label=source.multi_label)
    if not source.num_test:
        return None

    def test(train_state, batches, *, last, folder):
        del folder
        modules = to_modules(train_state)
        params = params_for_tests(modules.params, modules.opt_state)
        return evaluate(
            *on_this_process((params, modules.state)),
            batches,
            num_videos=source.num_test,
            num_classes=len(source.classes),
            shown=report.spread(source.num_test, NUM_SHOWN) if last else (),
        )

    return test


def _make_finish(rule: str, execution: str, classes: Sequence[str]) -> Callable:
    """`Job.finish`: the summary, and its pictures."""

    def finish(result: Result, workdir: Path, console: Console | None) -> report.Summary:
        evaluation, best = result.evaluation, result.best
        metrics = evaluation.metrics() if evaluation else {}
        summary = report.Summary(
            rule=rule,
            execution=execution,
            steps=result.step,
            test_accuracy=metrics.get("accuracy"),
            steps_per_second=result.steps_per_second,
            workdir=os.fspath(workdir),
            nll=metrics.get("loss"),
            ece=metrics.get("ece"),
            best_accuracy=best and best.score,
            best_step=best and best.step,
        )
        if console is not None:
            report.write(summary, evaluation.shown if evaluation else [], classes, workdir)
            report.print_table(summary, console)
        return summary

    return finish


def _batch_shape(data: ConfigDict, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    frames = (data.batch_size, data.num_frames, data.size, data.size, 3)
    label = jax.ShapeDtypeStruct((data.batch_size,), jnp.int32)
    if source.multi_label:
        label = jax.ShapeDtypeStruct((data.batch_size, len(source.classes)), jnp.uint8)
    return {"frames": jax.ShapeDtypeStruct(frames, jnp.uint8), "label": label}


def _check_output(network: Network, frame: jax.ShapeDtypeStruct, num_classes: int) -> None:
    """Raises ValueError for a network of the user's own that gives no logits."""
    variables = jax.eval_shape(network.init, jax.random.key(0), frame)
    output = network.activation_shapes(*variables, frame)[-1]
    wanted = (frame.shape[0], num_classes)
    if getattr(output, "shape", None) != wanted:
        raise ValueError(
            f"the network gives {output} for frames {list(frame.shape)}: it has to give logits of "
            f"the shape {wanted}, a number for each class"
        )


def _warnings(source: Source) -> Iterator[str]:
    """What makes no sense to learn, or to test on."""
    if len(source.classes) == 1:
        yield (
            f"there is one class, {printable(source.classes[0])}: nothing is learned by telling it "
            "from others; is the folder of classes one level higher?"
        )
    if not source.num_test:
        return
    tested = {number for label in source.videos["test"].labels for number in classes_of(label)}
    missing = [printable(name) for n, name in enumerate(source.classes) if n not in tested]
    if missing:
        yield (
            f"no test video of {len(missing)} of {len(source.classes)} classes "
            f"({', '.join(missing[:SHOWN_NAMES])}{', ...' * (len(missing) > SHOWN_NAMES)}): the "
            "test accuracy is that of the others"
        )


def _introduction(
    config: ConfigDict, source: Source, network: Network, execution: Execution, note: str
) -> str:
    frame = frame_shape(config.data)
    params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
    size = sum(x.size for x in jax.tree.leaves(params))
    text = (
        f"{config.rule} ({execution.chosen(config.execution)}) with {config.model.name}, "
        f"{network.depth} modules, {size:,} parameters, on {jax.devices()[0].device_kind}; "
        f"{config.data.name}: {len(source.classes)} classes, {source.num_train} videos to train on "
        f"and {source.num_test} to test, {source.steps_per_epoch} steps an epoch"
        + (f"; bad files left out: {len(source.skipped)}" if source.skipped else "")
        + "."
        + (f"\n{note}" if note else "")
        + "".join(f"\nWarning: {warning}." for warning in _warnings(source))
    )
    if execution.mesh is None or execution.name == "time_parallel":
        return text
    mesh, groups = execution.mesh, execution.groups
    kept = None
    if config.rule == "pipelined_backprop":
        kept = bytes_kept(Task(network, ONE_CLASS.loss_fn, config.rule), mesh, frame)
    report = devices_report.report(
        network, params, state, frame, mesh, groups, kept, padded=execution.is_jitted
    )
    return f"{text}\n{report}"
