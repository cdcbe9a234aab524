"""Measures the claims of the Sideways paper again, and writes a report to read.

python experiments/reproduce.py table1 figure6 --workdir=DIR      some questions
python experiments/reproduce.py all report --workdir=DIR          all of them, in three hours

WHAT is a file of `experiments/evidence/studies`: table1, gradients, adaptation, direction,
figure6, calibration, figures4_5, not_video, table3, future, online, quickstart, map; or all, or
report. Each says in its first lines what it asks, what it runs and how it judges. Rows go to
DIR/WHAT.json, one by one: the same command goes on after an interruption of any kind, and with
more `--seeds` computes those that are missing. `report` reads what is there, and writes
DIR/report/index.html, one page with all pictures in it. docs/evidence.md has the times.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # First of all: what comes meanwhile waits for `end_at_once`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from experiments.processes import interrupts

if __name__ == "__main__":
    interrupts.end_at_once(
        "Stopped. The runs so far are in their files; run the same command again to go on."
    )

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", None, "where rows and the report go", required=True)
_SEEDS = flags.DEFINE_integer("seeds", None, "how many; else those of each WHAT", lower_bound=1)
_UPDATES = flags.DEFINE_integer(
    "updates", None, "of every run (streams: frames), in the place of each WHAT's", lower_bound=1
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "after which no run begins; 180 if WHAT is all", lower_bound=0
)
_VIDEOS = flags.DEFINE_string("videos", "", "a folder of real videos, for gradients and adaptation")
_SMOKE = flags.DEFINE_bool("smoke", False, "tiny networks and few runs, in seconds")
_FULL = flags.DEFINE_bool("full", False, "table1 on UCF101 and HMDB51, with the paper's protocol")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "with --full: where they were built (docs/data.md)")


def main(argv: list[str]) -> int:
    """Computes what is missing, prints tables, and writes the report if it is asked for."""
    from experiments.evidence import catalogue, pace
    from experiments.terminal import command_line

    command_line.quiet()
    console, names = command_line.console(), argv[1:]
    settings = catalogue.Settings(
        _SEEDS.value, _UPDATES.value, _SMOKE.value, _VIDEOS.value, _MINUTES.value
    )
    workdir = Path(_WORKDIR.value).absolute()
    try:
        chosen = _chosen(names, list(catalogue.STUDIES))
        if "all" in names and settings.minutes is None:
            settings = settings._replace(minutes=catalogue.ALL_MINUTES)
        workdir.mkdir(parents=True, exist_ok=True)
        if _FULL.value:
            return _full(names, workdir, _DATA_DIR.value, settings.seeds or 1)
        say = partial(console.print, highlight=False, soft_wrap=True)
        catalogue.reproduce(
            chosen, workdir, settings, lambda seconds: pace.Pace(console, seconds), say
        )
        for name in chosen:
            _show(name, workdir, settings, console)
        if "report" in names:
            from experiments.evidence.report import page

            say(f"The report: {page.write(workdir, settings)}")
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _chosen(names: Sequence[str], studies: Sequence[str]) -> list[str]:
    """The studies to compute.

    Raises:
      ValueError: for an unknown name, or none.
    """
    from experiments.terminal.closest import did_you_mean

    valid = [*studies, "all", "report"]
    if not names:
        raise ValueError(f"say what to reproduce: {', '.join(valid)}")
    for name in names:
        if name not in valid:
            raise ValueError(
                f"unknown WHAT {name!r}; {did_you_mean(name, valid)}It can be {', '.join(valid)}"
            )
    return [name for name in studies if name in names or "all" in names]


def _show(name: str, workdir: Path, settings, console) -> None:
    """Prints the tables and the answer of a study, and draws its picture beside its rows."""
    from experiments.evidence import catalogue, summary
    from experiments.evidence.report import tables

    study = catalogue.study_of(name)
    rows = catalogue.rows_of(workdir, name, settings).rows
    if not rows:
        return
    for one in tables.tables_of(study, rows):
        if not one.aside:
            summary.print_table(one, console)
    for sentence in tables.answer_of(study, rows):
        console.print(sentence, highlight=False, soft_wrap=True)
    study.picture(rows).savefig(workdir / f"{name}.png", dpi=120)


def _full(names: Sequence[str], workdir: Path, data_dir: str, seeds: int) -> int:
    from experiments.evidence import full

    if list(names) != ["table1"]:
        raise ValueError(f"--full is for table1, not for {' '.join(names)}")
    return full.run(workdir / "full", data_dir, seeds)


if __name__ == "__main__":
    app.run(main)
