"""Benchmarks: `python experiments/benchmark.py --suite=rules --json=FILE`, and other suites.

Prints a table, writes `{"machine": {...}, "rows": [...]}` to FILE and a picture beside it. Frames
are random numbers; nothing is loaded. Suites are files in `experiments/benchmarks/`.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import app, flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import command_line
from experiments.benchmarks import (
    chip,
    measure,
    memory,
    online,
    peers,
    rules,
    scaling,
    table2,
)

SUITES = {
    "rules": rules, "memory": memory, "table2": table2, "online": online, "scaling": scaling,
    "peers": peers, "chip": chip,
}  # fmt: skip

FLAGS = flags.FLAGS
flags.DEFINE_enum("suite", None, list(SUITES), "what to measure", required=True)
flags.DEFINE_string("json", None, "the file to write; the picture goes to the same name with .png")
flags.DEFINE_string("model", "simple_cnn", "the network; chip takes vgg8 too if none is given")
flags.DEFINE_integer("frames", 64, "frames of the clips that are timed", lower_bound=1)
flags.DEFINE_list("memory_frames", ["16", "64", "256"], "the K for the memory")
flags.DEFINE_list("depths", ["2", "3", "6"], "the N for the memory")
flags.DEFINE_list("devices", ["2"], "the N of table2, online, scaling and peers")
flags.DEFINE_bool("forced", False, "devices of one process instead of processes with own cores")
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "of the activations, in table2, online and scaling"
)
flags.DEFINE_integer(
    "matrix", 8192, "rows of the matrices of chip (1024 do for a CPU)", lower_bound=1
)
flags.DEFINE_integer("stack", 16, "modules of the stack that scaling measures", lower_bound=3)
flags.DEFINE_float("link_latency_us", None, "of your links, to scale on them too", lower_bound=0)
flags.DEFINE_float("link_gigabytes_per_second", None, "likewise", lower_bound=1e-6)
flags.DEFINE_integer("batch", 8, "clips", lower_bound=1)
flags.DEFINE_integer("size", 32, "height and width of the frames", lower_bound=1)
flags.DEFINE_integer("rounds", 9, "timed calls of each, in turn", lower_bound=1)


def table(result: list[dict]) -> Table:
    """The rows that matter to a reader, as a table."""
    suite = SUITES[FLAGS.suite]
    shown, headers = suite.SHOWN, getattr(suite, "HEADERS", {})
    names = ", ".join(dict.fromkeys(row["model"] for row in result))
    lines = Table(title=f"{FLAGS.suite}: {names}, batch {FLAGS.batch}, size {FLAGS.size}")
    for name in shown:
        lines.add_column(headers.get(name, name.replace("_", " ")), justify="right")
    for row in getattr(suite, "shown", list)(result):
        cells = ("" if row[key] is None else form.format(row[key]) for key, form in shown.items())
        lines.add_row(*cells)
    return lines


def main(argv: list[str]) -> None:
    """Runs one suite."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: settings are given as --name=value")
    console = command_line.console()
    suite = SUITES[FLAGS.suite]
    settings = {
        "model": FLAGS.model,
        "models": (FLAGS.model,) if FLAGS["model"].present else ("simple_cnn", "vgg8"),
        "matrix": FLAGS.matrix,
        "frames": FLAGS.frames,
        "memory_frames": tuple(map(int, FLAGS.memory_frames)),
        "depths": tuple(map(int, FLAGS.depths)),
        "devices": tuple(map(int, FLAGS.devices)),
        "forced": FLAGS.forced,
        "dtype": FLAGS.dtype,
        "stack": FLAGS.stack,
        "link_latency_us": FLAGS.link_latency_us,
        "link_gigabytes_per_second": FLAGS.link_gigabytes_per_second,
        "batch": FLAGS.batch,
        "size": FLAGS.size,
        "rounds": FLAGS.rounds,
    }
    try:
        suite.prepare(**settings)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        result = suite.rows(**settings, progress=progress)
    console.print(table(result))
    if FLAGS.json:
        path = pathlib.Path(FLAGS.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": measure.machine(), "rows": result}, indent=2) + "\n")
        drawing = path.with_suffix(".png")
        suite.picture(result, drawing)
        console.print(f"written: {path} and {drawing}")


if __name__ == "__main__":
    app.run(main)
