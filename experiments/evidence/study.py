"""What a study is: runs that answer a question, and rows in a file, computed when missing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.evidence.pace import Pace
from experiments.processes.machine import machine
from experiments.workdir.files import read_rows, write_rows

Run = dict[str, Any]  # what is trained, JSON: "seed", and what else tells it from other runs
Row = dict[str, Any]  # the same, what was measured, "seconds", and "machine"

RULES = ("sideways", "pipelined_backprop", "backprop")
NAMES = {  # in tables and pictures
    "sideways": "Sideways",
    "pipelined_backprop": "pipelined backprop",
    "backprop": "backprop",
    "tsm": "synchronous TSM",
    "simple_cnn": "Simple-CNN",
    "vgg8": "VGG-8",
}


SEARCH_SEED = 1000  # of runs that choose a rate, and of no others


class Scale(NamedTuple):
    """How much of a study is computed."""

    seeds: int = 5
    updates: int | None = None  # in the place of those that the study has, to try it out
    smoke: bool = False  # the same on tiny networks, in seconds
    videos: str = ""  # a folder of real videos, for the studies that take some


class Table(NamedTuple):
    """Of text, for the terminal and the report."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    paper: Sequence[str] = ()  # the columns whose numbers are the paper's
    aside: bool = False  # long and of little interest: not in the terminal, folded in the report


def _nothing(scale: Scale, rows: Sequence[Row]) -> list[Run]:
    del scale, rows
    return []


class Study(NamedTuple):
    """A question about the rules; a file of `studies/` ends with one."""

    title: str
    runs: Callable[[Scale], list[Run]]
    measure: Callable[[Run], dict[str, Any]]  # trains; JSON
    value: str  # the name of the number that is compared
    format: str  # of the value, such as "{:.1%}"
    picture: Callable[[Sequence[Row]], Figure]
    question: str = ""
    minutes: float = 10.0  # that it may take on two quiet cores, with `seeds`
    seeds: int = 5
    # Runs that depend on the rows of `runs`, such as those at the rates that were chosen.
    then: Callable[[Scale, Sequence[Row]], list[Run]] = _nothing
    # What the rows say, in sentences, by rules that were written before they were there.
    answer: Callable[[Sequence[Row]], list[str]] | None = None
    tables: Callable[[Sequence[Row]], list[Table]] | None = None  # None: means by run


class Found(NamedTuple):
    """What of a study is there."""

    rows: list[Row]  # in the order of the runs
    missing: int  # runs; those of `then` are known when all others are there
    complete: bool


def compute(study: Study, scale: Scale, file: Path, pace: Pace | None = None) -> list[Row]:
    """The rows of a study.

    Args:
      study: what is compared.
      scale: how much of it.
      file: JSON; runs that it has are not computed again, the others are added one by one.
      pace: says how far it is, and ends it between two runs; by default in silence, to the end.

    Raises:
      ValueError: for a file of another program.
    """
    pace = Pace() if pace is None else pace
    rows = read_rows(file)
    first = study.runs(scale)
    if _add(study, first, rows, file, pace):
        _add(study, study.then(scale, _of(first, rows)), rows, file, pace)
    return found(study, scale, rows).rows


def found(study: Study, scale: Scale, rows: Sequence[Row]) -> Found:
    """What of a study is among some rows."""
    first = study.runs(scale)
    there = _of(first, rows)
    if len(there) < len(first):
        # Runs of `then` may be there from before, with fewer seeds.
        return Found(there, len(first) - len(there), complete=False)
    then = study.then(scale, there)
    later = _of(then, rows)
    return Found([*there, *later], len(then) - len(later), len(later) == len(then))


def _add(study: Study, runs: Sequence[Run], rows: list[Row], file: Path, pace: Pace) -> bool:
    """Computes what is missing of some runs; False if the time was over before."""
    missing = [run for run in runs if not _found(run, rows)]
    for n, run in enumerate(missing):
        if pace.is_over():
            return False
        start = time.monotonic()
        measured = study.measure(run)
        seconds = time.monotonic() - start
        measured = _json(measured) | {"seconds": round(seconds, 2), "machine": machine()}
        rows.append(run | measured)
        write_rows(file, rows)
        pace.ran(study.title, len(runs) - len(missing) + n + 1, len(runs), seconds)
    return True


def _json(value: Any) -> Any:
    """With None for what is not finite."""
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of(runs: Sequence[Run], rows: Sequence[Row]) -> list[Row]:
    return [row for run in runs for row in _found(run, rows)[:1]]


def _found(run: Run, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if run.items() <= row.items()]
