"""Compares Sideways, pipelined backprop and backprop: what do the wrong gradients of Sideways cost?

python experiments/compare_rules.py --study=direction --json=/tmp/direction.json

Studies: "quickstart", at the same updates and at the same compute; "direction", a task in which a
single frame says nothing; "online", the auto-encoder's stream at growing speeds; "map", two tasks
at three depths and three speeds. Prints means over seeds with 95% intervals (Student's t), and
draws a picture beside FILE. Runs that are in the file already are not computed again: the same
command goes on after an interruption, and with more `--seeds` computes those that are missing.
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
        "Stopped. The runs so far are in the file; run the same command again to go on."
    )

from pathlib import Path

from absl import app, flags

STUDIES = {  # by the file in experiments/comparisons
    "quickstart": "quickstart",
    "direction": "direction",
    "online": "online",
    "map": "depth_and_speed",
}

_STUDY = flags.DEFINE_enum("study", None, list(STUDIES), "what is compared", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 5, "how many", lower_bound=1)
_UPDATES = flags.DEFINE_integer(
    "updates", None, "of every run (online: frames), in the place of the study's", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "where the runs go", required=True)


def main(argv: list[str]) -> int:
    """Computes what is missing, prints the table, and draws."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: settings are given as --name=value")
    import importlib

    from experiments.comparisons import study, summary
    from experiments.terminal import command_line

    command_line.quiet()
    chosen = importlib.import_module(f"experiments.comparisons.{STUDIES[_STUDY.value]}").STUDY
    scale = study.Scale(_SEEDS.value, _UPDATES.value)
    file = Path(_JSON.value).absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = study.compute(chosen, scale, file)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    summaries = summary.by_seed(rows, chosen.runs(scale), chosen.value)
    summary.print_table(chosen, summaries, command_line.console())
    chosen.picture(rows).savefig(file.with_suffix(".png"), dpi=120)
    return 0


if __name__ == "__main__":
    app.run(main)
