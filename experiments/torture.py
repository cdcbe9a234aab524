"""What a run survives: kills, lost processes, other devices, damaged videos, Ctrl-C at any moment.

python experiments/torture.py kills|kills_of_processes --count=20 --json=/tmp/torture.json
python experiments/torture.py stops|lost|devices|disk|videos --count=16 --json=/tmp/torture.json
python experiments/torture.py interrupts --programs=quickstart,launch,live,table3 --every=0.2

Prints a table, and writes every trial to FILE. Trials that are there already are not made again, so
that the same command, or one with a larger `--count`, goes on. `kills`: a trial is a small run that
is killed five times; it has to end bit for bit as one that never was. `kills_of_processes`: the
same for runs of two processes alone. `stops`: a run that gets SIGTERM or Ctrl-C while it trains is
saved within 10 s or says why not, and ends. `lost`: one of two or three processes is killed or
stopped; the others have to end within 60 s. `devices`: a checkpoint of N devices is gone on from on
M. `disk`: the disk is full from a random moment on, and has room again for the next run (root alone
can mount such a disk). `videos`: each is decoded or refused by name. docs/reliability.md has the
counts.
"""

import signal

if __name__ == "__main__":  # First of all: what comes meanwhile waits for `end_at_once`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from experiments.processes import interrupts

if __name__ == "__main__":
    interrupts.end_at_once("Stopped. The trials so far are in the file.")

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from absl import app, flags
from rich.table import Table

from experiments.terminal import command_line
from experiments.trials import devices, disk, kills, lost, mutants, stops
from experiments.trials import interrupts as interrupted
from experiments.workdir.files import read_rows, write_rows

TRIALS = {
    "kills": kills.run,
    "kills_of_processes": partial(kills.run, variants=("processes",)),
    "lost": lost.run,
    "devices": devices.run,
    "disk": disk.run,
    "stops": stops.run,
    "videos": mutants.run,
}
# Columns that are added up, beside the number of trials and of those that failed.
_SUMS = "kills", "inside_saves", "was_full", "damaged", "left_over"

_COUNT = flags.DEFINE_integer("count", 5, "how many trials", lower_bound=1)
_JSON = flags.DEFINE_string("json", "/tmp/torture.json", "where the trials go")
_FOLDER = flags.DEFINE_string("folder", "/tmp/torture", "where the runs are; failed ones stay")
_PROGRAMS = flags.DEFINE_list("programs", ["quickstart", "launch", "live", "table3"], "interrupted")
_SIGNALS = flags.DEFINE_list("signals", ["SIGINT", "SIGTERM"], "that they get")
_FIRST = flags.DEFINE_float("first", 0.2, "seconds after the start, of the first signal")
_LAST = flags.DEFINE_float("last", 8.0, "seconds after the start, of the last signal")
_EVERY = flags.DEFINE_float("every", 0.2, "seconds between two moments")


class Settings(NamedTuple):
    """Which trials, and where they go."""

    what: str  # one of TRIALS, or interrupts
    count: int
    file: Path
    folder: Path
    interrupts: interrupted.Settings


def run(settings: Settings) -> list[dict]:
    """The rows of all trials of this kind, those of the file among them."""
    rows = read_rows(settings.file)
    if settings.what == "interrupts":
        done = {(row["program"], row["signal"], row["after"])
                for row in rows if row["what"] == settings.what}  # fmt: skip
        made = (outcome._asdict() | {"failed": not outcome.passed}
                for outcome in interrupted.run(settings.interrupts, done))  # fmt: skip
    else:
        done = {row["number"] for row in rows if row["what"] == settings.what}
        first = max(done, default=-1) + 1
        made = TRIALS[settings.what](range(first, settings.count), settings.folder)
    start = time.monotonic()
    for row in made:
        now = time.monotonic()
        measured = {"took_seconds": now - start, "load": os.getloadavg()[0]}
        rows.append({"what": settings.what, **row, **measured})
        start = now
        write_rows(settings.file, rows)
        print("failed" if row["failed"] else "passed", row, file=sys.stderr, flush=True)
    return [row for row in rows if row["what"] == settings.what]


def make_table(rows: list[dict]) -> Table:
    """A row for every kind of trial: how many, what they add up to, and how many failed."""
    groups: dict[str, list[dict]] = {}
    names = "program", "signal", "variant", "process", "kind", "codec"
    for row in rows:
        kind = " ".join(str(row[name]) for name in names if name in row)
        groups.setdefault(kind or row["what"], []).append(row)
    table = Table(title=rows[0]["what"])
    sums = [name for name in _SUMS if name in rows[0]]
    for name in ("trial", "count", *sums, "slowest, s", "failed"):
        table.add_column(name.replace("_", " "), justify="left" if name == "trial" else "right")
    for kind, group in groups.items():
        seconds = [row["seconds"] for row in group if row.get("seconds") is not None]
        table.add_row(
            kind, str(len(group)),
            *(str(sum(row[name] if isinstance(row[name], int) else 0 for row in group))
              for name in sums),
            f"{max(seconds):.1f}" if seconds else "", str(sum(row["failed"] for row in group)),
        )  # fmt: skip
    return table


def main(argv: list[str]) -> int:
    """Makes the trials that are missing; 1 if any failed."""
    valid = *TRIALS, "interrupts"
    if len(argv) != 2 or argv[1] not in valid:
        raise app.UsageError(f"give one of {', '.join(valid)}, not {argv[1:]}")
    command_line.quiet()
    settings = Settings(
        what=argv[1],
        count=_COUNT.value,
        file=Path(_JSON.value),
        folder=Path(_FOLDER.value),
        interrupts=interrupted.Settings(
            tuple(_PROGRAMS.value), tuple(_SIGNALS.value), _FIRST.value, _LAST.value, _EVERY.value
        ),
    )
    try:
        interrupted.check(settings.interrupts)
        settings.file.absolute().parent.mkdir(parents=True, exist_ok=True)
        rows = run(settings)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    command_line.console().print(make_table(rows))
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    app.run(main)
