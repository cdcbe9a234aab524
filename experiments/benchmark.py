"""Benchmarks: `python experiments/benchmark.py --suite=rules --json=FILE`, and other suites.

Prints a table, writes `{"machine": {...}, "rows": [...]}` to FILE and a picture beside it. Frames
are random numbers; nothing is loaded. Suites are files in `experiments/benchmarks/suites/`; each
takes some of the flags below, with defaults of its own.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments.benchmarks.rig import suite
from experiments.benchmarks.suites import (
    chip,
    chips,
    inference,
    memory,
    online,
    peers,
    rules,
    speedup,
)
from experiments.terminal import command_line

SUITES = {
    "rules": rules.SUITE,
    "memory": memory.SUITE,
    "table2": speedup.SUITE,
    "online": online.SUITE,
    "inference": inference.SUITE,
    "peers": peers.SUITE,
    "chip": chip.SUITE,
    "chips": chips.SUITE,
}

FLAGS = flags.FLAGS
_SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "what to measure", required=True)
_JSON = flags.DEFINE_string("json", None, "the file to write; the picture goes beside it, as .png")
_SETTINGS = suite.define_flags(SUITES)
for _name in _SETTINGS:
    flags.declare_key_flag(_name)  # So that --help shows it.


def make_table(name: str, settings, rows: list[suite.Row]) -> Table:
    """The rows that matter to a reader, as a table."""
    shown, headers = SUITES[name].columns, SUITES[name].headers
    title = f"{name}: {suite.names(rows)}, batch {settings.batch}, size {settings.size}"
    table = Table(title=title)
    for key in shown:
        table.add_column(headers.get(key, key.replace("_", " ")), justify="right")
    for row in SUITES[name].shown(rows):
        cells = ("" if row[key] is None else form.format(row[key]) for key, form in shown.items())
        table.add_row(*cells)
    return table


def main(argv: list[str]) -> None:
    """Runs one suite."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: settings are given as --name=value")
    console = command_line.console()
    name, chosen = _SUITE.value, SUITES[_SUITE.value]
    given = {one: FLAGS[one].value for one in _SETTINGS if FLAGS[one].present}
    try:
        settings = suite.settings_of(name, chosen, given)
        chosen.check(settings)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        path = pathlib.Path(_JSON.value) if _JSON.value else None
        rows = suite.written(chosen.rows(settings, progress), path)
    console.print(make_table(name, settings, rows))
    if path:
        drawing = path.with_suffix(".png")
        chosen.picture(rows, drawing)
        console.print(f"written: {path} and {drawing}")


if __name__ == "__main__":
    app.run(main)
