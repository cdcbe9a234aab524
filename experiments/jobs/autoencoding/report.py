"""What a run on a stream leaves for people to look at."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from experiments.jobs.autoencoding.score import Scores
from experiments.terminal.names import draw_plainly
from experiments.terminal.tables import print_row
from experiments.workdir import metrics_log
from experiments.workdir.files import write_atomically

NUM_MIDDLE = 10  # frames in a row, as in Figures 7 and 8
MOST_KEPT = 400  # frames, to find their middle


class StreamSummary(NamedTuple):
    """The result of a run."""

    rule: str
    execution: str
    frames: int  # that arrived for training, over all streams
    scores: Scores | None  # on the test streams; None without any
    frames_per_second: float | None  # of each stream, of training alone; None if there was none
    workdir: str
    best_mse: float | None = None  # against the frame of now; `best/` has its checkpoint
    best_step: int | None = None


class ShownFrames(NamedTuple):
    """Consecutive frames of one stream and the outputs at their steps, uint8 `[n, H, W, 3]`."""

    frames: np.ndarray
    outputs: np.ndarray


class MiddleFrames:
    """Finds the frames in the middle of the first stream, whose length is not known in advance.

    It keeps at most `MOST_KEPT` frames, and takes the middle of those.
    """

    def __init__(self):
        self._frames, self._outputs, self._over = [], [], False

    def add(self, frames: np.ndarray, outputs: np.ndarray, reset: np.ndarray) -> None:
        """Adds steps of the streams of one slot, `[K, H, W, 3]` each and bool `[K]`."""
        for frame, output, starts in zip(frames, outputs, reset, strict=True):
            self._over |= bool(self._frames) and (bool(starts) or len(self._frames) == MOST_KEPT)
            if self._over:
                return
            self._frames.append(frame)
            self._outputs.append(output)

    def result(self, pixel_range: tuple[float, float]) -> ShownFrames:
        """The `NUM_MIDDLE` frames in the middle, or all if there are fewer."""
        start = max(0, (len(self._frames) - NUM_MIDDLE) // 2)
        chosen = slice(start, start + NUM_MIDDLE)
        outputs = np.stack(self._outputs[chosen])
        return ShownFrames(np.stack(self._frames[chosen]), as_uint8(outputs, pixel_range))


def as_uint8(outputs: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Outputs in `pixel_range` as pixels 0 ... 255; values outside are clipped.

    >>> as_uint8(np.array([-1.0, 0.0, 2.0]), (-1.0, 1.0))
    array([  0, 128, 255], dtype=uint8)
    """
    low, high = pixel_range
    return np.round((np.clip(outputs, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def draw_strip(shown: ShownFrames) -> np.ndarray:
    """Input above output, frames side by side: uint8 `[2H+1, W*n, 3]`."""
    rows = [np.concatenate(list(one), axis=1) for one in (shown.frames, shown.outputs)]
    gap = np.full((1, *rows[0].shape[1:]), 255, np.uint8)
    return np.concatenate([rows[0], gap, rows[1]])


def save_strip(strip: np.ndarray, file: Path) -> None:
    """Writes a picture, uint8 `[H, W, 3]`, as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).save(file)


def write(summary: StreamSummary, shown: ShownFrames | None, workdir: Path) -> None:
    """Writes `summary.json`, `training_curves.png` and `middle_frames.png` into the workdir."""
    scores = summary.scores and summary.scores._asdict()
    plain = summary._asdict() | {"scores": scores}
    write_atomically(workdir / "summary.json", json.dumps(plain, indent=2) + "\n")
    title = f"{summary.rule}, {summary.execution}"
    lines = list(metrics_log.read(workdir / "metrics.jsonl"))
    draw_curves(lines, title).savefig(workdir / "training_curves.png")
    if shown is not None:
        rows = {"frame of now": shown.frames, f"{title}: shown": shown.outputs}
        draw_rows(rows).savefig(workdir / "middle_frames.png")


def print_table(summary: StreamSummary, console: Console) -> None:
    """Prints the summary, at the end of a run."""
    row = {"rule": summary.rule, "frames": f"{summary.frames:,}"}
    if summary.scores is not None:
        scores = summary.scores
        row |= {
            "MSE, now": f"{scores.streaming_mse:.3g}",
            "MSE, own frame": f"{scores.compensated_mse:.3g}",
            "lag, max": f"{scores.mean_lag:.1f}, {scores.max_lag}",
            "used/dropped": f"{scores.frames_used:,}/{scores.frames_dropped:,}",
        }
    speed = summary.frames_per_second
    row["frames/s"] = "-" if speed is None else f"{speed:.3g}"
    best = summary.best_mse
    rest = "" if best is None else f"; best: {best:.3g} after step {summary.best_step}, in best/"
    print_row(row, summary.workdir, console, rest)


def draw_curves(lines: list[dict], title: str) -> Figure:
    """Draws the errors against the step, from the lines of a `metrics.jsonl`."""
    figure = Figure(figsize=(6, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves = (
        ("train", "loss", "while it learns", "#0072B2", "-"),
        ("test", "streaming_mse", "test, against the frame of now", "#D55E00", "o--"),
        ("test", "compensated_mse", "test, against its own frame", "#007A5E", "s:"),
    )
    for split, name, label, colour, style in curves:
        points = [(line["step"], line[name]) for line in lines if line["split"] == split]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
            axes.legend(frameon=False)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("mean squared error")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure


def draw_rows(rows: dict[str, np.ndarray]) -> Figure:
    """Draws rows of frames below one another, each below its name, as in Figures 7 and 8.

    Args:
      rows: uint8 `[n, H, W, 3]` by name.
    """
    num_frames, height, width = next(iter(rows.values())).shape[:3]
    inches = 1.0
    figure = Figure(
        figsize=(inches * num_frames, len(rows) * (inches * height / width + 0.25)),
        dpi=150,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    gap = max(1, round(0.04 * width))
    for axes, (name, frames) in zip(np.atleast_1d(figure.subplots(len(rows))), rows.items(),
                                    strict=True):  # fmt: skip
        mosaic = np.full((height, num_frames * (width + gap) - gap, 3), 255, np.uint8)
        for n, frame in enumerate(frames):
            mosaic[:, n * (width + gap) : n * (width + gap) + width] = frame
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_title(name, fontsize=9, loc="left")
        axes.axis("off")
    return figure


def draw_milestones(rows: list[dict]) -> Figure:
    """Draws how the errors of both rules fall as frames arrive: a row a source, a column a stride.

    Args:
      rows: of `experiments/table3.py`, of all seeds; lines are means, dots are seeds.
    """
    sources, strides = (list(dict.fromkeys(r[name] for r in rows)) for name in ("source", "stride"))
    size = 3.2 * len(strides) + 1.6, 2.8 * len(sources) + 0.4
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(sources), len(strides), squeeze=False, sharey="row")
    places = itertools.product(sources, strides)
    for axes, (source, stride) in zip(grid.flat, places, strict=True):
        for rule, colour in (("backprop", "tab:blue"), ("sideways", "tab:orange")):
            for protocol, style in (("held_out", "-"), ("in_stream", "--"), ("copying", ":")):
                errors: dict[int, list[float]] = {}
                for row in rows:
                    here = row["source"], row["stride"], row["rule"], row["protocol"]
                    error = row["streaming_mse"]
                    if here == (source, stride, rule, protocol) and error is not None:
                        errors.setdefault(row["arriving"], []).append(error)
                frames = sorted(errors)
                label = f"{rule}, {protocol}"
                means = [np.mean(errors[n]) for n in frames]
                axes.plot(frames, means, style, color=colour, label=label)
                if protocol == "held_out":
                    for n in frames:
                        axes.plot([n] * len(errors[n]), errors[n], ".", color=colour, alpha=0.5)
        axes.set(xscale="log", yscale="log", title=f"{Path(source).name}, stride {stride}")
        axes.set_xticks(sorted({row["arriving"] for row in rows if row["source"] == source}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_formatter("")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:g}")
        axes.tick_params(which="both", labelsize=7)
        axes.title.set_fontsize(9)
        draw_plainly(axes.title)
    figure.supxlabel("frames that arrived", fontsize=9)
    figure.supylabel("mean squared error", fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return figure
