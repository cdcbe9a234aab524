"""What online Sideways is good for: how soon is a network right again after the stream has
changed?

An auto-encoder (D = 6, half of the channels of docs/online.md, 32x32 pixels) knows one kind of
scene, by batched backprop. Then a stream begins, a frame a step: 264 frames as before; the light
changes; after 528 frames the scene; after 528 more the camera; 528 more. **Drawn** streams, and
**real** ones (`--videos=DIR`).
**Learners** (`training/changing.py`): Sideways, pipelined backprop, backprop that blocks and
drops 10 of 11 frames, data-parallel backprop with the compute of the pipelines, and data-parallel
backprop that skips 5 of 11 frames. All with gradient descent, momentum, and Adam.
**Search**: for every learner and optimizer the best of three rates, by the mean error after the
changes, on a drawn stream with a seed that is used nowhere else.

**Planned statistics.** The error is that of the weights on the frames to come, every 11 frames (6
with
"data_parallel"). (1) The mean error in the 528 frames after each change, means with intervals
over five seeds, and of Sideways with its best optimizer (by the search) paired differences to
every other learner with its best. (2) Frames until the error is back: at or below 1.5 times the
lowest error that any learner has in the last quarter after that change, with the same seed; 528
where it does not come back; the mean is then a lower bound.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.evidence.study import NAMES, SEARCH_SEED, Row, Run, Scale, Study, Table
from experiments.evidence.summary import (
    at_an_edge,
    band,
    difference,
    logarithmic,
    mean_of,
    said,
    shown,
    where,
)
from experiments.evidence.training import changing
from experiments.evidence.training.changing import CHANGES, LEARNERS

OPTIMIZERS = {"sgd": (0.03, 0.1, 0.3), "momentum": (0.003, 0.01, 0.03), "adam": (3e-5, 1e-4, 3e-4)}
TOLERANCE = 1.5  # times the lowest error of the last quarter
TITLES = NAMES | {"blocking": "blocking backprop", "data_parallel": "data-parallel backprop",
                  "skipping": "data-parallel, skipping"}  # fmt: skip
COLOURS = {"sideways": "tab:orange", "pipelined_backprop": "tab:purple", "blocking": "tab:blue",
           "data_parallel": "tab:green", "skipping": "tab:olive"}  # fmt: skip


def runs(scale: Scale) -> list[Run]:
    """The search."""
    optimizers = {"sgd": (0.1,)} if scale.smoke else OPTIMIZERS
    return [
        _run(scale, "search", "drawn", learner, optimizer, rate, SEARCH_SEED)
        for optimizer, rates in optimizers.items()
        for learner in LEARNERS
        for rate in rates
    ]


def then(scale: Scale, rows: Sequence[Row]) -> list[Run]:
    """Everything at its best rate, with the first seed, then with the next."""
    sources = ("drawn", "real") if scale.videos else ("drawn",)
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    return [
        _run(scale, "compare", source, learner, optimizer, _best(rows, learner, optimizer)["rate"],
             seed)
        for seed in range(scale.seeds)
        for source in sources
        for optimizer in optimizers
        for learner in LEARNERS
    ]  # fmt: skip


def _run(scale, stage, source, learner, optimizer, rate, seed) -> Run:
    folder = os.path.abspath(os.path.expanduser(scale.videos)) if source == "real" else ""
    return {
        "study": "adaptation",
        "stage": stage,
        "source": source,
        **({"videos": folder} if folder else {}),
        "size": "smoke" if scale.smoke else "32x32",
        "learner": learner,
        "optimizer": optimizer,
        "rate": rate,
        "seed": seed,
    }


def _best(rows: Sequence[Row], learner: str, optimizer: str | None = None) -> Row:
    """The row of the search with the smallest error after the changes."""
    some = where(rows, stage="search", learner=learner)
    some = some if optimizer is None else where(some, optimizer=optimizer)
    return min(some, key=_error)


def _error(row: Row) -> float:
    return float("inf") if row["mean error"] is None else row["mean error"]


def measure(run: Run) -> dict[str, object]:
    """Learns one stream."""
    size = changing.SMOKE if run["size"] == "smoke" else changing.Size()
    folder = run.get("videos", "")
    stream = changing.frames(size, folder, run["seed"])
    params = changing.pretrained(size, folder, run["seed"])
    points = list(
        changing.errors(run["learner"], run["optimizer"], run["rate"], size, stream, params)
    )
    frames = [frame for frame, _ in points]
    errors = [float(f"{error:.5g}") for _, error in points]
    starts = [size.before + n * size.after for n in range(len(CHANGES))]
    means = [
        float(np.mean([error for frame, error in points if start <= frame < start + size.after]))
        for start in starts
    ]
    return {
        "before": size.before,
        "after": size.after,
        "frames": frames,
        "errors": errors,
        **{f"error, {change}": mean for change, mean in zip(CHANGES, means, strict=True)},
        "mean error": float(np.mean(means)),
    }


def recovery(rows: Sequence[Row]) -> list[dict]:
    """Frames until the error is back, of every row of one source: `{learner, ..., frames}`."""
    found = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        some = where(rows, seed=seed)
        for n, change in enumerate(CHANGES):
            curves = [_after(row, n) for row in some]
            lowest = min(
                (error[3 * len(error) // 4 :].mean() for _, error in curves
                 if np.isfinite(error).all()), default=float("nan"),
            )  # fmt: skip
            for row, (frame, error) in zip(some, curves, strict=True):
                back = np.flatnonzero(error <= TOLERANCE * lowest)
                frames = float(frame[back[0]]) if back.size else float(row["after"])
                of_run = {name: row[name] for name in ("learner", "optimizer", "seed")}
                after = {"change": change, "frames": frames, "back": bool(back.size)}
                found.append(of_run | after)
    return found


def _after(row: Row, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames since the n-th change, and the errors there."""
    frames, errors = np.asarray(row["frames"]), np.asarray(row["errors"], float)
    start = row["before"] + n * row["after"]
    here = (start <= frames) & (frames < start + row["after"])
    return frames[here] - start, errors[here]


def answer(rows: Sequence[Row]) -> list[str]:
    """Sideways with its best optimizer against every other learner with its best."""
    compared, sentences = where(rows, stage="compare"), []
    if not compared:
        return []
    best = {learner: _best(rows, learner)["optimizer"] for learner in LEARNERS}
    rates = {
        f"{TITLES[learner]} ({best[learner]})": (
            _best(rows, learner)["rate"], OPTIMIZERS[best[learner]]
        )
        for learner in LEARNERS
    }  # fmt: skip
    for source in dict.fromkeys(row["source"] for row in compared):
        here = where(compared, source=source)
        recovered = recovery(here)
        if source == "real":
            sentences.append(
                "Real streams: the files take turns, so seeds beyond their number repeat a stream "
                "with other first weights, and these intervals are too narrow for other videos."
            )
        for other in LEARNERS[1:]:
            pair = [where(here, learner=one, optimizer=best[one]) for one in ("sideways", other)]
            one = difference(*pair, "mean error")
            names = f"Sideways ({best['sideways']}) - {TITLES[other]} ({best[other]})"
            sentences.append(
                said(one, f"{source}: mean error after the changes, {names}", template="{:+.4f}",
                     higher=f"{TITLES[other]} is better", lower="Sideways is better")
            )  # fmt: skip
            pair = [where(recovered, learner=one, optimizer=best[one])
                    for one in ("sideways", other)]  # fmt: skip
            one = difference(*pair, "frames", ("seed", "change"))
            sentences.append(
                said(one, f"{source}: frames until the error is back, {names}", template="{:+.0f}",
                     higher=f"{TITLES[other]} is sooner", lower="Sideways is sooner")
            )  # fmt: skip
    return [*sentences, *at_an_edge(rates)]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Errors and frames by learner and optimizer; the search."""
    found = []
    for source in dict.fromkeys(row["source"] for row in where(rows, stage="compare")):
        here = where(rows, stage="compare", source=source)
        recovered, lines = recovery(here), []
        for learner, optimizer in dict.fromkeys((r["learner"], r["optimizer"]) for r in here):
            some = where(here, learner=learner, optimizer=optimizer)
            cells = []
            for change in CHANGES:
                back = where(recovered, learner=learner, optimizer=optimizer, change=change)
                bound = "" if all(one["back"] for one in back) else "≥ "
                cells.append(f"{shown(mean_of(some, f'error, {change}'), '{:.4f}')}; "
                             f"{bound}{shown(mean_of(back, 'frames'), '{:.0f}')}")  # fmt: skip
            lines.append([TITLES[learner], optimizer, f"{some[0]['rate']:g}", *cells,
                          str(len(some))])  # fmt: skip
        title = f"{source} streams: mean error after a change; frames until it is back"
        found.append(Table(title, ["learner", "optimizer", "rate", *CHANGES, "seeds"], lines))
    lines = [[TITLES[r["learner"]], r["optimizer"], f"{r['rate']:g}", f"{_error(r):.4f}"]
             for r in where(rows, stage="search")]  # fmt: skip
    header = "learner", "optimizer", "rate", "mean error"
    return [*found, Table("The search, one drawn stream", header, lines, aside=True)]


def picture(rows: Sequence[Row]) -> Figure:
    """The error along the stream, every learner with its best optimizer."""
    compared = where(rows, stage="compare")
    sources = list(dict.fromkeys(row["source"] for row in compared)) or ["drawn"]
    figure = Figure(figsize=(10, 3.6 * len(sources)), layout="constrained")
    for axes, source in zip(figure.subplots(len(sources), 1, squeeze=False)[:, 0], sources,
                            strict=True):  # fmt: skip
        for learner in LEARNERS:
            if not where(rows, stage="search", learner=learner):
                continue
            optimizer = _best(rows, learner)["optimizer"]
            some = where(compared, source=source, learner=learner, optimizer=optimizer)
            if some:
                band(axes, some[0]["frames"], [row["errors"] for row in some], lw=1.2,
                     of_logarithms=True, color=COLOURS[learner],
                     label=f"{TITLES[learner]}, {optimizer}")  # fmt: skip
        if compared:
            first = compared[0]
            for n, change in enumerate(CHANGES):
                start = first["before"] + n * first["after"]
                axes.axvline(start, color="0.6", lw=0.8)
                axes.annotate(change, (start, 0.98), xycoords=("data", "axes fraction"),
                              va="top", fontsize=8)  # fmt: skip
        logarithmic(axes)
        axes.set(ylabel="error of the weights", title=f"{source} streams")
    axes.set_xlabel("frames that arrived")
    if compared:
        figure.axes[0].legend(fontsize=7)
    return figure


STUDY = Study(
    title="After a change in the stream",
    question="After a change of light, scene or camera, who is right again first?",
    runs=runs,
    then=then,
    measure=measure,
    value="mean error",
    format="{:.4f}",
    picture=picture,
    answer=answer,
    tables=tables,
    minutes=10,
)
