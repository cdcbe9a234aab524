"""Tests a saved run, on its own data or on others, in detail.

python experiments/evaluate_checkpoint.py --workdir=DIR [--path=OTHER_VIDEOS] [--split=all]

It prints top-1 and top-5 accuracy, the negative log-likelihood (NLL), the expected calibration
error (ECE) and a table of the classes, and writes `evaluation.json`, `confusion.png` and
`calibration.png` into `--out`. Other data need classes of the network, in any order: `--path` for
other videos of the same kind; `--config=FILE` (and `--config.data...`) for another data set. Of a
run on a stream it prints the errors on the test streams.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # First of all: what comes meanwhile waits for `end_at_once`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.getcwd())  # For networks and data of the user's own.
from experiments.processes import interrupts

if __name__ == "__main__":
    interrupts.end_at_once("Stopped.")

from functools import partial
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "the directory of the run")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "last, best, or a step")
_PATH = flags.DEFINE_string("path", None, "other videos, for config.data.path of the run")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "train", "all"], "which of the videos")
_OUT = flags.DEFINE_string("out", None, "a folder for the results; WORKDIR/evaluation")
_CONFIG = config_flags.DEFINE_config_file("config", None, "whose data are taken, if not the run's")


def main(argv: list[str]) -> int:
    """Tests once; what a user can get wrong ends in one line."""
    del argv
    from experiments.terminal import command_line

    command_line.quiet()
    from data import BadVideo
    from experiments import trained
    from experiments.terminal.names import printable

    console = command_line.console()
    folder = Path(_OUT.value or Path(_WORKDIR.value) / "evaluation")
    try:
        run = trained.load(_WORKDIR.value, _CHECKPOINT.value)
        data = _CONFIG.value.data if _CONFIG.value else run.config.data
        if _PATH.value is not None:
            with data.unlocked():
                data.path = _PATH.value
        test = _test_stream if run.config.task == "autoencoding" else _test_classes
        test(run, data, folder, console)
    except (ValueError, OSError, BadVideo) as error:
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return 1
    console.print(f"after step {run.step}; written to {folder}", soft_wrap=True, highlight=False)
    return 0


def _test_classes(run, data, folder, console):
    from experiments.jobs.classification import checkpoint, detail

    evaluation = checkpoint.evaluate(
        *run[:4], data,
        seed=run.config.seed, average=run.config.eval.average, split=_SPLIT.value,
    )  # fmt: skip
    detail.write(evaluation, run.classes, folder)
    detail.print_tables(evaluation, run.classes, console)


def _test_stream(run, data, folder, console):
    from experiments.jobs.autoencoding import job

    evaluation = job.evaluate_saved(run.config, data, run.network, run.params, run.state, folder)
    for name, value in evaluation.metrics().items():
        console.print(f"{name}: {value:.4g}", highlight=False)


if __name__ == "__main__":
    from experiments.configs._descriptions import describe
    from experiments.terminal.command_line import parse_flags

    flags.mark_flag_as_required("workdir")
    app.run(main, flags_parser=partial(parse_flags, describe=describe))
