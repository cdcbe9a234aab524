"""What a study is: runs that answer a question, and rows in a file, computed when missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from experiments.processes.machine import machine
from experiments.workdir.files import write_atomically

Run = dict[str, Any]  # what is trained, JSON: "seed", and what else tells it from other runs
Row = dict[str, Any]  # the same, what was measured, and "machine"

RULES = ("sideways", "pipelined_backprop", "backprop")
NAMES = {  # in tables and pictures
    "sideways": "Sideways",
    "pipelined_backprop": "pipelined backprop",
    "backprop": "backprop",
    "tsm": "synchronous TSM",
}


class Scale(NamedTuple):
    """How much of a study is computed."""

    seeds: int = 5
    updates: int | None = None  # in the place of those that the study has, to try it out


class Study(NamedTuple):
    """A question about the rules; a file of this folder ends with one."""

    title: str
    runs: Callable[[Scale], list[Run]]
    measure: Callable[[Run], dict[str, Any]]  # trains; JSON
    value: str  # the name of the number that is compared
    format: str  # of the value, such as "{:.1%}"
    picture: Callable[[Sequence[Row]], Figure]


def compute(study: Study, scale: Scale, file: Path) -> list[Row]:
    """The rows of a study.

    Args:
      study: what is compared.
      scale: how much of it.
      file: JSON; runs that it has are not computed again, the others are added one by one.

    Raises:
      ValueError: for a file of another program.
    """
    rows = _read(file)
    wanted = study.runs(scale)
    missing = [run for run in wanted if not _found(run, rows)]
    for run in track(missing, study.title, console=Console(stderr=True)):
        rows.append(run | study.measure(run) | {"machine": machine()})
        content = json.dumps({"rows": rows}, indent=1, allow_nan=False)
        write_atomically(file, content + "\n")
    return [row for run in wanted for row in _found(run, rows)[:1]]


def _read(file: Path) -> list[Row]:
    if not file.exists():
        return []
    try:
        return json.loads(file.read_text())["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no file of this program ({error}): remove it") from error


def _found(run: Run, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if run.items() <= row.items()]
