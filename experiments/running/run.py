"""A run of a job, whichever it is: from its config to its summary, all of it in a workdir."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console

from experiments.configs._checks import check_fields
from experiments.running import loop
from experiments.running.best import BestCheckpoint
from experiments.running.checks import check_saved, check_steps
from experiments.running.protocol import Job
from experiments.running.stopping import StopSignal
from experiments.terminal.progress import Progress
from experiments.workdir import classes, lock, space
from experiments.workdir import config as workdirs
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.metrics_log import MetricsLog

_PLAIN = {"highlight": False, "markup": False, "soft_wrap": True}


def run(
    prepare: Callable[[ConfigDict, Path], Job],
    config: ConfigDict,
    workdir: os.PathLike[str] | str,
    console: Console | None = None,
) -> Any:
    """Trains, or goes on, until `config.train.num_steps`, and tests.

    Args:
      prepare: makes the job out of its config and the workdir, in which it writes nothing but
        examples that the config asks for. What can be wrong with the config shows here, before it
        claims the workdir.
      config: of the job.
      workdir: gets `config.json`, `classes.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`,
        `best/`, and what the job writes when it is finished.
      console: where progress and results are shown; the standard output by default.

    Returns:
      What `Job.finish` makes of it.

    Raises:
      ValueError: for a config that makes no sense, or that is not the one of this workdir; and when
        another run is at work there.
      OSError: when the disk is full.
      NonFiniteError: when the loss, the gradients or the parameters are no longer finite; the
        checkpoints before that stay as they are.
      Stopped: after Ctrl-C or SIGTERM, once the run is saved.
    """
    workdir = Path(workdir)
    console = console or Console()
    check_fields(config)
    check_steps(config.train)
    is_first = jax.process_index() == 0
    if is_first:  # Only the first of several processes holds the lock.
        lock.check(workdir)
    workdirs.check(config, workdir)
    job = prepare(config, workdir)
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(job.open_batches()))
        if is_first:
            stack.enter_context(lock.held(workdir))
        return _run_in(workdir, job, batches, console, is_first)


def _run_in(
    workdir: Path, job: Job, batches: grain.DatasetIterator, console: Console, is_first: bool
) -> Any:
    """Runs a job in its workdir, which it may write into now."""
    options, folder = job.config.train, workdir
    with contextlib.ExitStack() as stack:
        stack.enter_context(space.explained(workdir, lambda: _size(job, workdir)))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, job.to_modules, job.from_modules, check_saved)
        )
        best = stack.enter_context(BestCheckpoint(workdir, job.to_modules, check_saved))
        console.print(job.introduction, **_PLAIN)
        if not is_first:  # All save checkpoints together; only one process writes the rest.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with classes.explained(job.classes, workdir):
            position = loop.go_on(checkpoints, job.init(), batches, options.num_steps, console)
        if is_first:  # Not before: a run that cannot go on leaves the workdir as it was.
            workdirs.claim(job.config, workdir)
            classes.write(job.classes, workdir)
        batches.start_prefetch()
        with contextlib.ExitStack() as session_stack:
            log = session_stack.enter_context(MetricsLog(folder, position.step))
            if log.damage:
                console.print(log.damage, **_PLAIN)
            session = loop.Session(
                folder=folder,
                checkpoints=checkpoints,
                best=best,
                log=log,
                progress=session_stack.enter_context(
                    Progress(console, position.step, options.num_steps, options.log_every)
                ),
                stop=StopSignal(),
            )
            result = loop.run(options, job, session, batches, position)
        return job.finish(result, folder, console if is_first else None)


def _size(job: Job, workdir: Path) -> int:
    """Bytes of a checkpoint: what is learned, or what the largest of those that are there has."""
    leaves = jax.tree.leaves(jax.eval_shape(job.init))
    learned = sum(x.size * x.dtype.itemsize for x in leaves if jnp.issubdtype(x.dtype, jnp.number))
    there = (workdir / "checkpoints").glob("[0-9]*")
    return max([learned, *map(space.size_of, there)])
