"""Frames of the future on a stream: what a shortcut brings that is three steps newer.

Four streams of `moving_solids`, 24x24 pixels, every second frame, 2100 frames of each. A network of
four modules paints at every step the frames that come 1, 2, 3, 5, 7 and 10 steps after the newest
one, all in one output (`experiments.evidence.training.future`). Gradient descent 0.3, the rate of
`online`, with an update at every step. The error is that of the last quarter of the stream, while
it learns, each against the frame that then comes.

Compared are Sideways without a shortcut; the same with one from the frame to the last module
(Skip-Sideways); pipelined backprop of that network, whose gradients are exact but for weights that
move; blocking backprop without a shortcut, which learns from one frame of seven; and no network at
all, which repeats the newest frame. Three things are asked: what the shortcut gains; whether
Skip-Sideways predicts, that is, has less error than repeating; and what wrong gradients cost it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.rig.suite import COLOURS
from experiments.evidence.study import NAMES, Row, Run, Scale, Study, Table
from experiments.evidence.summary import Summary, difference, said, shown, where
from experiments.evidence.training import future

FRAMES = 25 * future.CHUNK
LEARNERS = (  # rule, and which module (0-based) hears the frame
    ("sideways", "none"),
    ("sideways", "3"),
    ("pipelined_backprop", "3"),
    ("backprop", "none"),
)


def runs(scale: Scale) -> list[Run]:
    """All learners with the first seed, then with the next."""
    frames = scale.updates or (4 * future.CHUNK if scale.smoke else FRAMES)
    return [
        {
            "study": "future",
            "rule": rule,
            "hears the frame": hears,
            "frames": max(frames // future.CHUNK, 4) * future.CHUNK,
            "rate": 0.3,
            "size": "smoke" if scale.smoke else "full",
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for rule, hears in LEARNERS
    ]


def measure(run: Run) -> dict[str, float | list[float]]:
    """Learns one stream."""
    size = future.SMOKE if run["size"] == "smoke" else future.Size()
    found = future.errors(
        run["rule"], run["hears the frame"] != "none", run["rate"], size, run["frames"], run["seed"]
    )
    mean = float(np.mean(found["errors"]))
    return {"error": mean, "ahead": list(future.AHEAD)} | found


def _ratios(rows: Sequence[Row], n: int) -> Summary:
    """The error so many steps ahead over that of repeating, of every seed."""
    place = future.AHEAD.index(n)
    return Summary({}, tuple(float(_ratio(row)[place]) for row in rows))


def _ratio(row: Row) -> np.ndarray:
    """`[6]`; NaN where the error was not finite."""
    return np.asarray(row["errors"], float) / np.asarray(row["repeated"], float)


def _of(rows: Sequence[Row], rule: str, hears: str) -> list[Row]:
    return where(rows, rule=rule, **{"hears the frame": hears})


def answer(rows: Sequence[Row]) -> list[str]:
    """The three questions, in errors over those of repeating."""
    skip, plain = _of(rows, "sideways", "3"), _of(rows, "sideways", "none")
    sentences = [
        said(
            difference(skip, other, lambda row: float(_ratio(row).mean())),
            f"Error over that of repeating, mean of all n, Skip-Sideways - {name}",
            higher=f"{name} is better", lower="Skip-Sideways is better",
        )
        for name, other in (
            ("Sideways", plain),
            ("pipelined backprop of the same network", _of(rows, "pipelined_backprop", "3")),
        )
    ]  # fmt: skip
    nothing = [row | {"errors": row["repeated"]} for row in skip]
    for place, n in enumerate(future.AHEAD):
        one = difference(skip, nothing, lambda row, at=place: float(_ratio(row)[at]))
        what = f"{n} steps ahead, error over that of repeating, Skip-Sideways - repeating"
        sentences.append(
            said(one, what, higher="repeating is better", lower="Skip-Sideways is better")
        )
    return sentences


def _name(rule: str, hears: str) -> str:
    return NAMES[rule] + ("" if hears == "none" else ", the last module hears the frame")


def tables(rows: Sequence[Row]) -> list[Table]:
    """Errors over that of repeating, a line for every learner and a column for every n."""
    lines = []
    for learner in LEARNERS:
        if some := _of(rows, *learner):
            cells = [shown(_ratios(some, n), "{:.3f}") for n in future.AHEAD]
            lines.append([_name(*learner), *cells, str(len(some))])
    header = ["", *(f"{n} ahead" for n in future.AHEAD), "seeds"]
    return [Table("Error over that of repeating the newest frame", header, lines)]


def picture(rows: Sequence[Row]) -> Figure:
    """The error against the number of steps ahead, a line for every learner."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes, over = figure.subplots(1, 2)
    for rule, hears in LEARNERS:
        if not (some := _of(rows, rule, hears)):
            continue
        style = {
            "color": COLOURS[rule], "label": _name(rule, hears), "marker": "o", "capsize": 3,
            "linestyle": "--" if hears == "none" else "-",
        }  # fmt: skip
        errors = np.asarray([row["errors"] for row in some], float)
        by_n = [Summary({}, tuple(column)) for column in errors.T]
        ratios = [_ratios(some, n) for n in future.AHEAD]
        for panel, summaries in ((axes, by_n), (over, ratios)):
            panel.errorbar(
                future.AHEAD, [one.mean for one in summaries],
                yerr=np.nan_to_num([one.half_width for one in summaries]), **style,
            )  # fmt: skip
    repeated = np.mean([row["repeated"] for row in rows], axis=0)
    axes.plot(future.AHEAD, repeated, "k:", label="repeating the newest frame")
    over.axhline(1, color="k", linestyle=":")
    axes.set(ylabel="mean squared error", ylim=(0, None))
    over.set(ylabel="the same over that of repeating", yscale="log")
    over.yaxis.set_major_formatter("{x:g}")
    over.yaxis.set_minor_formatter("")
    for panel in (axes, over):
        panel.set(xlabel="steps ahead of the newest frame", xticks=future.AHEAD)
    axes.legend(fontsize=7)
    figure.suptitle(f"Painting the future: {rows[0]['frames']:,} frames of moving solids")
    return figure


STUDY = Study(
    title="The future on a stream: mean error, 1 to 10 steps ahead",
    runs=runs,
    measure=measure,
    value="error",
    format="{:.5f}",
    picture=picture,
    question="Frames that are yet to come: what do newer frames bring to a pipeline?",
    answer=answer,
    tables=tables,
    minutes=7,
    seeds=3,
)
