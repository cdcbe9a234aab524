"""Frames of the future on a stream: what a shortcut brings that is three steps newer.

Four streams of `moving_solids`, 24x24 pixels, every second frame, 8400 frames of each. A network of
four modules paints at every step the frames that come 1, 2, 3, 5, 7 and 10 steps after the newest
one, all in one output (`experiments.evidence.training.future`). Gradient descent with an update at
every step, at 0.3, the rate of `online`, and at 0.1. The error is that of the last quarter of the
stream, while it learns, each against the frame that then comes.

The first plan was 2100 frames, three seeds and the rate of 0.3. There the learners without a
shortcut diverged, and the interval of three seeds was too wide to tell Skip-Sideways from
repeating; so frames, seeds and the second rate were added.

Compared are Sideways without a shortcut; the same with one from the frame to the last module
(Skip-Sideways); pipelined backprop of that network, whose gradients are exact but for weights that
move; blocking backprop without a shortcut, which learns from one frame of seven, and with it; and
no network at all, which repeats the newest frame. Asked are: what the shortcut gains; whether
Skip-Sideways has less error than repeating; and what wrong gradients cost it. What the shortcut
gains is not motion alone: the last module adds to the frame that it hears, and without one paints
all of it. Blocking backprop with the shortcut, which was added last, sees one frame only: what it
gains over repeating is no motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.rig.suite import COLOURS
from experiments.evidence.study import NAMES, Row, Run, Scale, Study, Table
from experiments.evidence.summary import Summary, difference, said, shown, where
from experiments.evidence.training import future

FRAMES = 100 * future.CHUNK
RATES = (0.3, 0.1)
LEARNERS = (  # rule, and which module (0-based) hears the frame
    ("sideways", "none"),
    ("sideways", "3"),
    ("pipelined_backprop", "3"),
    ("backprop", "none"),
    ("backprop", "3"),  # hears one frame twice: it can change it, and sees no motion
)


def runs(scale: Scale) -> list[Run]:
    """All learners at all rates with the first seed, then with the next."""
    frames = scale.updates or (4 * future.CHUNK if scale.smoke else FRAMES)
    return [
        {
            "study": "future",
            "rule": rule,
            "hears the frame": hears,
            "frames": max(frames // future.CHUNK, 4) * future.CHUNK,
            "rate": rate,
            "size": "smoke" if scale.smoke else "full",
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for rate in RATES
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


def _of(rows: Sequence[Row], rule: str, hears: str, rate: float) -> list[Row]:
    return where(rows, rule=rule, rate=rate, **{"hears the frame": hears})


def answer(rows: Sequence[Row]) -> list[str]:
    """The three questions at each rate, in errors over those of repeating."""
    return [sentence for rate in RATES for sentence in _answer(rows, rate)]


def _answer(rows: Sequence[Row], rate: float) -> list[str]:
    skip, plain = _of(rows, "sideways", "3", rate), _of(rows, "sideways", "none", rate)
    exact, still = (_of(rows, rule, "3", rate) for rule in ("pipelined_backprop", "backprop"))
    at = f"at the rate {rate:g}"
    others = {
        "Sideways": plain,
        "pipelined backprop of the same network": exact,
        "backprop of the same network, which sees one frame": still,
    }
    sentences = [
        said(
            difference(skip, other, lambda row: float(_ratio(row).mean())),
            f"Error over that of repeating, mean of all n, {at}, Skip-Sideways - {name}",
            higher=f"{name} is better", lower="Skip-Sideways is better",
        )
        for name, other in others.items()
    ]  # fmt: skip
    if lost := len(_diverged(plain)):
        sentences.append(
            f"Sideways without the shortcut diverged {at} with {lost} of {len(plain)} seeds, "
            "which are not in its difference."
        )
    nothing = [row | {"errors": row["repeated"]} for row in skip]
    for place, n in enumerate(future.AHEAD):
        one = difference(skip, nothing, lambda row, i=place: float(_ratio(row)[i]))
        what = f"{n} steps ahead, {at}, error over that of repeating, Skip-Sideways - repeating"
        sentences.append(
            said(one, what, higher="repeating is better", lower="Skip-Sideways is better")
        )
    return sentences


def _diverged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not np.isfinite(_ratio(row)).all()]


def _name(rule: str, hears: str) -> str:
    return NAMES[rule] + ("" if hears == "none" else ", the last module hears the frame")


def tables(rows: Sequence[Row]) -> list[Table]:
    """Errors over that of repeating, a line for every learner and a column for every n."""
    lines = []
    for rule, hears in LEARNERS:
        for rate in RATES:
            if some := _of(rows, rule, hears, rate):
                cells = [shown(_ratios(some, n), "{:.3f}") for n in future.AHEAD]
                lines.append([_name(rule, hears), f"{rate:g}", *cells, str(len(some))])
    header = ["", "rate", *(f"{n} ahead" for n in future.AHEAD), "seeds"]
    return [Table("Error over that of repeating the newest frame", header, lines)]


def picture(rows: Sequence[Row]) -> Figure:
    """The error against the number of steps ahead, a line for every learner, at its better rate."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes, over = figure.subplots(1, 2)
    for rule, hears in LEARNERS:
        by_rate = [_of(rows, rule, hears, rate) for rate in RATES]
        finite = [some for some in by_rate if some and not _diverged(some)]
        if not finite:
            continue
        some = min(finite, key=lambda some: np.mean([row["error"] for row in some]))
        style = {
            "color": COLOURS[rule], "marker": "o" if hears == "none" else "s",
            "label": f"{_name(rule, hears)}, rate {some[0]['rate']:g}",
            "linestyle": "--" if hears == "none" else "-",
        }  # fmt: skip
        # Streams differ more than learners, so that only ratios have intervals that say something.
        axes.plot(future.AHEAD, np.mean([row["errors"] for row in some], axis=0), **style)
        ratios = [_ratios(some, n) for n in future.AHEAD]
        over.errorbar(
            future.AHEAD, [one.mean for one in ratios], capsize=3,
            yerr=np.nan_to_num([one.half_width for one in ratios]), **style,
        )  # fmt: skip
    repeated = np.mean([row["repeated"] for row in rows], axis=0)
    axes.plot(future.AHEAD, repeated, "k:", label="repeating the newest frame")
    over.axhline(1, color="k", linestyle=":")
    axes.set(ylabel="mean squared error", ylim=(0, 1.5 * axes.get_ylim()[1]))
    over.set(ylabel="the same over that of repeating", yscale="log")
    over.yaxis.set_major_formatter("{x:g}")
    over.yaxis.set_minor_formatter("{x:g}")
    for panel in (axes, over):
        panel.set(xlabel="steps ahead of the newest frame", xticks=future.AHEAD)
    axes.legend(fontsize=7, loc="upper left")
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
    minutes=11,
)
