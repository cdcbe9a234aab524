"""What a trained network says of videos it has never seen.

python experiments/predict.py --workdir=DIR FILE|FOLDER|CAMERA|ADDRESS ... [--json=FILE]

A classifier gives a row for every file, its most probable classes over the whole video; a camera
(0, /dev/video0) or an address (http, https, rtsp) is watched for `--frames` frames. An auto-encoder
paints: a new video for every source in `--out`, what came on the left and what was painted
meanwhile on the right. The status is 1 if something could not be read.
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

import json
import time
from pathlib import Path

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", None, "the directory of the run")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "last, best, or a step")
_JSON = flags.DEFINE_string("json", None, "a file for the rows, with all classes")
_TOP = flags.DEFINE_integer("top", 3, "how many classes of a video are shown", lower_bound=1)
_RESIZE = flags.DEFINE_integer(
    "resize", None, "pixels of the shorter side before the crop, if not those of the run"
)
_FRAMES = flags.DEFINE_integer(
    "frames", 64, "of a camera or an address; 0: until it ends", lower_bound=0
)
_OUT = flags.DEFINE_string("out", None, "where an auto-encoder paints; WORKDIR/painted")


def main(argv: list[str]) -> int:
    """Shows a row for every video; what a user can get wrong ends in one line."""
    from experiments.terminal.command_line import quiet

    quiet()
    from rich.console import Console

    from experiments import trained
    from experiments.terminal.names import printable
    from experiments.workdir.files import write_atomically

    console = Console()
    if len(argv) < 2:
        print("Error: give at least one file, folder, camera or address", file=sys.stderr)
        return 1
    try:
        run = trained.load(_WORKDIR.value, _CHECKPOINT.value)
        show = _painted if run.config.task == "autoencoding" else _classified
        shown = show(run, argv[1:])  # Compiles what a classifier needs.
        started, rows, videos, frames = time.perf_counter(), [], 0, 0
        for text, row in shown:
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            rows.append(row)
            videos += row["error"] is None
            frames += row["frames"]
        seconds = time.perf_counter() - started
    except (ValueError, OSError) as error:
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return 1
    if _JSON.value:
        write_atomically(Path(_JSON.value), json.dumps(rows, indent=1) + "\n")
    bad = len(rows) - videos
    console.print(
        f"{videos} videos, {frames:,} frames in {seconds:.1f} s: {videos / seconds:.3g} videos/s, "
        f"{frames / seconds:.3g} frames/s" + (f"; {bad} could not be read" if bad else ""),
        highlight=False,
        soft_wrap=True,
    )
    return 1 if bad or not videos else 0


def _classified(run, sources):
    """A line and a row for every video, one after the other; the network is compiled now."""
    from experiments.jobs.classification.prediction import classifier_of, predict

    found = predict(classifier_of(run, _RESIZE.value), sources, live_frames=_FRAMES.value)
    return (_line_and_row(run, one) for one in found)


def _line_and_row(run, one):
    """Of a prediction."""
    from experiments.terminal.names import printable

    row = {"source": one.source, "frames": one.frames, "error": one.error, "classes": {}}
    if one.error is not None:
        return f"{printable(one.source)}: {one.error}", row
    order = (-one.probabilities).argsort()
    row["classes"] = {run.classes[n]: float(one.probabilities[n]) for n in order}
    said = "  ".join(
        f"{100 * one.probabilities[n]:5.1f}% {printable(run.classes[n])}"
        for n in order[: _TOP.value]
    )
    return f"{printable(one.source)}: {said}", row


def _painted(run, sources):
    """Yields a line and a row for every source."""
    from experiments.jobs.autoencoding.prediction import paint
    from experiments.terminal.names import printable

    folder = Path(_OUT.value or Path(_WORKDIR.value) / "painted")
    for one in paint(
        run.config, *run[:3], sources, folder=folder, live_frames=_FRAMES.value
    ):  # fmt: skip
        scores = one.scores
        row = {"source": one.source, "frames": 0, "error": one.error}
        if scores is None:
            yield f"{printable(one.source)}: {one.error}", row
            continue
        row |= scores._asdict() | {"out": os.fspath(one.out)}
        yield (
            (
                f"{printable(one.source)}: error {scores.streaming_mse:.4f} against the frame of "
                f"now, {scores.compensated_mse:.4f} against its own, lag {scores.mean_lag:.1f}; "
                f"{printable(os.fspath(one.out))}"
            ),
            row,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
