"""The main job: train a network on videos, evaluate it, and leave everything in a workdir.

Running the same experiment again in the same workdir goes on from its last checkpoint; on the CPU
the result is that of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.console import Console

from data import load
from data.pipeline import Source
from experiments import example_archives, loop, report
from experiments import workdir as workdirs
from experiments.checkpoints import Checkpoints
from experiments.checks import all_finite, check_steps
from experiments.configs.common import DTYPES
from experiments.evaluate import make_evaluate
from experiments.execution import Execution, choose, conversions, on_this_process
from experiments.metrics_log import MetricsLog
from experiments.optimisation import make_tx, schedule_options
from experiments.progress import Progress
from experiments.stopping import StopSignal, hidden_from_children
from sideways_jax import Network, depth_sharded, models, step
from sideways_jax.names import check_name
from sideways_jax.optimizer import learning_rate_schedule

NUM_SHOWN = 8  # test clips in the picture


def train_and_evaluate(
    config: ConfigDict, workdir: os.PathLike[str] | str, console: Console | None = None
) -> report.Summary:
    """Trains, or goes on, until `config.train.num_steps`, and evaluates on the test videos.

    Args:
      config: see `experiments.configs.common.base_config`.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`,
        `summary.json`, `training_curves.png` and `test_clips.png`.
      console: where progress and results are shown; the standard output by default.

    Returns:
      What it came to.

    Raises:
      ValueError: for a config that makes no sense, or that is not the one of this workdir.
      NonFiniteError: when the loss, the gradients or the parameters are no longer finite; the
        checkpoints before that stay as they are.
      Stopped: after Ctrl-C or SIGTERM, once the run is saved.
    """
    workdir = Path(workdir)
    console = console or Console()
    check_steps(config)
    config = _with_videos(config, workdir)
    workdirs.check(config, workdir)

    depth = make_network(config, num_classes=2).depth
    execution = choose(config, depth)
    source = load(
        config.data,
        seed=config.seed,
        process_index=execution.share,
        process_count=execution.num_shares,
    )
    network = make_network(config, len(source.classes))
    tx = make_tx(config, source.steps_per_epoch)
    init, train_step = make_train_step(config, network, tx, execution)
    train_state = jax.jit(init)(jax.random.key(config.seed))
    to_modules, from_modules = conversions(execution, network, tx, _frame_shape(config))
    # Every process tests on all videos, and all of them get the same result.
    whole = source if execution.num_shares == 1 else load(config.data, seed=config.seed)
    evaluate = _make_evaluate(config, network, whole, to_modules)
    # Everything else that can be wrong with the config shows here, before it claims the workdir.
    jax.eval_shape(train_step, train_state, _batch_shape(config))
    _introduce(console, config, source, network, train_state.rng, execution)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        batches = stack.enter_context(contextlib.closing(iter(source.train)))
        checkpoints = stack.enter_context(Checkpoints(workdir, to_modules, from_modules))
        if jax.process_index() == 0:
            workdirs.claim(config, workdir)
        else:  # All save checkpoints together; only one process writes the rest.
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train_state, start, window = loop.go_on(
            checkpoints, train_state, batches, config.train.num_steps, console
        )
        batches.start_prefetch()
        result = loop.run(
            loop.Job(
                options=config.train,
                train_step=jax.jit(train_step, donate_argnums=0),
                batches=batches,
                put=execution.put,
                # The first batch may start worker processes.
                fetching=hidden_from_children
                if config.data.num_workers
                else contextlib.nullcontext,
                test_batches=whole.test,
                evaluate=evaluate,
                schedule=learning_rate_schedule(**schedule_options(config, source.steps_per_epoch)),
                steps_per_epoch=source.steps_per_epoch,
                shown=_spread(source.num_test, NUM_SHOWN),
                checkpoints=checkpoints,
                log=stack.enter_context(MetricsLog(workdir, start)),
                progress=stack.enter_context(
                    Progress(console, start, config.train.num_steps, config.train.log_every)
                ),
                stop=stop,
            ),
            train_state,
            start,
            window,
        )

    evaluation = result.evaluation
    summary = report.Summary(
        rule=config.rule,
        execution=described(execution, config),
        steps=config.train.num_steps,
        test_accuracy=evaluation and evaluation.accuracy,
        steps_per_second=result.steps_per_second,
        workdir=os.fspath(workdir),
    )
    if jax.process_index() > 0:
        return summary
    report.write(summary, evaluation.shown if evaluation else [], source.classes, workdir)
    report.print_table(summary, console)
    return summary


def make_network(config: ConfigDict, num_classes: int) -> Network:
    """The network of `config.model`, with an output for every class.

    Raises:
      ValueError: for an unknown network, or an argument that it does not have.
    """
    check_name("model.dtype", config.model.get("dtype", "float32"), DTYPES)
    arguments = config.model.to_dict()
    return models.make(arguments.pop("name"), num_classes, **arguments)


def make_train_step(
    config: ConfigDict,
    network: Network,
    tx: optax.GradientTransformation,
    execution: Execution,
) -> tuple[Callable, Callable]:
    """`sideways_jax.step.make_train_step` for batches as the data come.

    Returns:
      `(init, train_step)`: `init(key) -> TrainState`, and `train_step(train_state, batch) ->
      (train_state, metrics)` with a batch `{"frames": uint8 [B, K, H, W, 3], "label": int32 [B]}`.
      The metrics are "loss" (cross-entropy per computation step), "accuracy", "grad_norm", and
      "finite": whether all that was learned is.
    """
    init, train_step = step.make_train_step(
        network,
        cross_entropy,
        tx,
        rule=config.rule,
        schedule=config.schedule or None,
        recompute=config.recompute,
        target=config.target,
        metrics_fn=lambda logits, label: {"accuracy": accuracy(logits, label)},
        **execution.arguments,
    )
    frame = _frame_shape(config)

    def train_on_batch(train_state, batch):
        # Time first. Frames stay uint8 until the first module normalises them.
        frames = batch["frames"].swapaxes(0, 1)
        labels = jnp.broadcast_to(batch["label"], frames.shape[:2])
        train_state, metrics = train_step(train_state, frames, labels)
        return train_state, metrics | {"finite": all_finite(train_state)}

    return lambda key: init(key, frame), train_on_batch


def _make_evaluate(
    config: ConfigDict, network: Network, source: Source, to_modules: Callable
) -> Callable | None:
    """`evaluate(train_state, batches, shown)`, or None if there are no test videos."""
    evaluate = make_evaluate(network, config.eval.average)
    if not source.num_test:
        return None

    def run(train_state, batches, shown):
        modules = to_modules(train_state)
        return evaluate(
            *on_this_process((modules.params, modules.state)),
            batches,
            num_videos=source.num_test,
            num_classes=len(source.classes),
            shown=shown,
        )

    return run


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of one computation step: logits `[B, classes]`, label int32 `[B]`, mean over B."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The fraction of a batch whose largest logit is that of the label."""
    return jnp.mean((logits.argmax(axis=-1) == label).astype(jnp.float32))


def described(execution: Execution, config: ConfigDict) -> str:
    """The execution, with what else says where it ran."""
    if execution.mesh is None:
        return execution.name
    shape = " x ".join(f"{name} {size}" for name, size in execution.mesh.shape.items())
    return " ".join(filter(None, (execution.name, config.schedule, f"({shape})")))


def _frame_shape(config: ConfigDict) -> jax.ShapeDtypeStruct:
    shape = _batch_shape(config)["frames"]
    return jax.ShapeDtypeStruct((shape.shape[0], *shape.shape[2:]), shape.dtype)


def _batch_shape(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    data = config.data
    frames = (data.batch_size, data.num_frames, data.size, data.size, 3)
    return {
        "frames": jax.ShapeDtypeStruct(frames, jnp.uint8),
        "label": jax.ShapeDtypeStruct((data.batch_size,), jnp.int32),
    }


def _spread(size: int, count: int) -> list[int]:
    """At most `count` of the numbers 0 to `size - 1`, evenly spread.

    >>> _spread(10, 4)
    [0, 3, 6, 9]
    """
    return np.linspace(0, size - 1, min(count, size)).astype(int).tolist()


def _with_videos(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config, with a folder of example videos if it asks for them and names no other."""
    if config.example_videos and not config.data.path:
        workdirs.check(config, workdir)  # before anything is written
    return example_archives.with_examples(config, workdir / "example_videos")


def _introduce(console, config, source, network, key, execution) -> None:
    params, state = jax.eval_shape(network.init, key, _frame_shape(config))
    size = sum(x.size for x in jax.tree.leaves(params))
    console.print(
        f"{config.rule} ({config.execution}) with {config.model.name}, {network.depth} modules, "
        f"{size:,} parameters, on {jax.devices()[0].device_kind}; {config.data.name}: "
        f"{len(source.classes)} classes, {source.num_train} videos to train on and "
        f"{source.num_test} to test, {source.steps_per_epoch} steps an epoch"
        + (f"; bad files left out: {len(source.skipped)}" if source.skipped else "")
        + ".",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if execution.mesh is not None:
        frame, mesh = _frame_shape(config), execution.mesh
        who_has_what = depth_sharded.report(network, params, state, frame, mesh, execution.groups)
        console.print(who_has_what, highlight=False, markup=False, soft_wrap=True)
