"""A run of a job, whichever it is: from its config to its summary, all of it in a workdir."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.configs.checks import check_fields
from experiments.running import loop
from experiments.running.checks import check_saved, check_steps
from experiments.running.protocol import Job
from experiments.running.stopping import StopSignal
from experiments.terminal.progress import Progress
from experiments.workdir import config as workdirs
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.metrics_log import MetricsLog


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
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and what the job
        writes when it is finished.
      console: where progress and results are shown; the standard output by default.

    Returns:
      What `Job.finish` makes of it.

    Raises:
      ValueError: for a config that makes no sense, or that is not the one of this workdir.
      NonFiniteError: when the loss, the gradients or the parameters are no longer finite; the
        checkpoints before that stay as they are.
      Stopped: after Ctrl-C or SIGTERM, once the run is saved.
    """
    workdir = Path(workdir)
    console = console or Console()
    check_fields(config)
    check_steps(config.train)
    workdirs.check(config, workdir)
    job = prepare(config, workdir)
    options, is_first = job.config.train, jax.process_index() == 0

    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(job.open_batches()))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, job.to_modules, job.from_modules, check_saved)
        )
        console.print(job.introduction, highlight=False, markup=False, soft_wrap=True)
        if is_first:
            workdirs.claim(job.config, workdir)
        else:  # All save checkpoints together; only one process writes the rest.
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        position = loop.go_on(checkpoints, job.init(), batches, options.num_steps, console)
        batches.start_prefetch()
        session = loop.Session(
            folder=workdir,
            checkpoints=checkpoints,
            log=stack.enter_context(MetricsLog(workdir, position.step)),
            progress=stack.enter_context(
                Progress(console, position.step, options.num_steps, options.log_every)
            ),
            stop=StopSignal(),
        )
        result = loop.run(options, job, session, batches, position)
    return job.finish(result, workdir, console if is_first else None)
