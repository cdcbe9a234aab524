"""The results of a run for readers: a table and two pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from experiments.jobs.classification.accuracy import ShownClip
from experiments.terminal.names import draw_plainly, printable
from experiments.terminal.tables import print_row
from experiments.workdir import metrics_log
from experiments.workdir.files import write_atomically

SHOWN_FRAMES = 8

# Colours that stay apart for colour-blind readers (Okabe and Ito).
_TRAIN, _TEST, _RIGHT, _WRONG = "#0072B2", "#D55E00", "#007A5E", "#B03A00"


class Summary(NamedTuple):
    """The result of a run."""

    rule: str
    execution: str
    steps: int
    test_accuracy: float | None  # fraction of the test videos; None without any
    steps_per_second: float | None  # of training alone, in the last session; None if it had none
    workdir: str
    nll: float | None = None  # negative log-likelihood of the test videos, nats
    ece: float | None = None  # expected calibration error on them
    best_accuracy: float | None = None  # of all evaluations; `best/` has its checkpoint
    best_step: int | None = None


def write(
    summary: Summary, clips: Sequence[ShownClip], classes: Sequence[str], workdir: Path
) -> None:
    """Writes `summary.json`, `training_curves.png` and `test_clips.png` into the workdir."""
    write_atomically(workdir / "summary.json", json.dumps(summary._asdict(), indent=2) + "\n")
    title = f"{summary.rule}, {summary.execution}"
    draw_curves(list(metrics_log.read(workdir / "metrics.jsonl")), title).savefig(
        workdir / "training_curves.png"
    )
    if clips:
        draw_clips(clips, classes).savefig(workdir / "test_clips.png")


def print_table(summary: Summary, console: Console) -> None:
    """Prints the summary and where the rest of it is: the last thing that a run prints."""
    speed, accuracy = summary.steps_per_second, summary.test_accuracy
    row = {
        "rule": summary.rule,
        "execution": summary.execution,
        "steps": f"{summary.steps}",
        "test accuracy": _percent(accuracy),
        "NLL": "-" if summary.nll is None else f"{summary.nll:.3f}",
        "ECE": "-" if summary.ece is None else f"{summary.ece:.3f}",
        "steps/s": "-" if speed is None else f"{speed:.3g}",
    }
    print_row(row, summary.workdir, console, _best(summary))


def _best(summary: Summary) -> str:
    if summary.best_step is None or summary.best_accuracy is None:
        return ""
    return f"; best: {_percent(summary.best_accuracy)} after step {summary.best_step}, in best/"


def draw_curves(lines: Sequence[dict], title: str) -> Figure:
    """Draws loss and accuracy, train and test, against the step.

    Args:
      lines: of a `metrics.jsonl`.
      title: above the picture.
    """
    figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, colour, style in (("train", _TRAIN, "-"), ("test", _TEST, "o--")):
            points = [(line["step"], line[name]) for line in lines if line["split"] == split]
            steps, values = zip(*points, strict=True) if points else ((), ())
            marker = "o-" if split == "train" and len(points) == 1 else style
            axes.plot(steps, values, marker, color=colour, label=split, markersize=4, linewidth=1.5)
        axes.set_xlabel("step")
        axes.set_ylabel("cross-entropy" if name == "loss" else "accuracy")
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper right" if name == "loss" else "lower right")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    axes.set_ylim(0, 1.02)
    return figure


def draw_clips(clips: Sequence[ShownClip], classes: Sequence[str]) -> Figure:
    """Draws a row for every clip: some of its frames, the prediction and the label.

    Args:
      clips: at least one, with frames of one size.
      classes: the names of the classes.
    """
    height, width = clips[0].frames.shape[1:3]
    gap = max(1, round(0.04 * width))
    mosaic = np.full(
        (len(clips) * (height + gap) - gap, SHOWN_FRAMES * (width + gap) - gap, 3), 255, np.uint8
    )
    for row, clip in enumerate(clips):
        top = row * (height + gap)
        for column, frame in enumerate(clip.frames[spread(len(clip.frames), SHOWN_FRAMES)]):
            left = column * (width + gap)
            mosaic[top : top + height, left : left + width] = frame

    frame_inches = 0.85
    figure = Figure(
        figsize=(frame_inches * (SHOWN_FRAMES + 2.6), frame_inches * len(clips) * height / width),
        dpi=150,
    )
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.008, 0.01, SHOWN_FRAMES / (SHOWN_FRAMES + 2.6), 0.98))
    axes.set_axis_off()
    axes.imshow(mosaic, interpolation="nearest")
    for row, clip in enumerate(clips):
        predicted, true, right = _said(clip, classes)
        label = axes.annotate(
            f"{'✓' if right else '✗'} predicted: {predicted}\n    true: {true}",
            (mosaic.shape[1], row * (height + gap) + height / 2),
            xytext=(8, 0),
            textcoords="offset points",
            color=_RIGHT if right else _WRONG,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
        draw_plainly(label)
    return figure


def _said(clip: ShownClip, classes: Sequence[str]) -> tuple[str, str, bool]:
    """What was predicted, what is true, and whether that is the same."""
    if np.ndim(clip.label):
        predicted, true = (
            ", ".join(_short(classes[n], 10) for n in np.flatnonzero(chosen)) or "nothing"
            for chosen in (clip.probabilities > 0.5, clip.label)
        )
        return predicted, true, bool(((clip.probabilities > 0.5) == clip.label).all())
    best = int(clip.probabilities.argmax())
    sure = f"{100 * clip.probabilities[best]:.0f}%"
    return f"{_short(classes[best])} ({sure})", _short(classes[clip.label]), best == clip.label


def spread(size: int, count: int) -> list[int]:
    """At most `count` of the numbers 0 to `size - 1`, evenly spread.

    >>> spread(10, 4)
    [0, 3, 6, 9]
    """
    return np.linspace(0, size - 1, min(count, size)).astype(int).tolist()


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}%"


def _short(name: str, length: int = 22) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"
