"""The direction task: a single frame says nothing, so what is learned is motion.

Digits of 8x8 pixels move over a torus of 20x20, one pixel a frame; the class is one of eight
directions (`moving_digits` with `task="direction"`). Five modules of two-dimensional convolutions.
In a pipeline shortcuts from the frame bring modules newer frames than the main path does, so that
they can see motion (Skip-Sideways). Synchronous networks see one frame at a time, but for TSM
(`experiments.evidence.training.tsm`), where a part of the channels is of the frame before.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from data import default_config
from experiments.evidence.study import NAMES, Row, Run, Scale, Study
from experiments.evidence.summary import bars, by_seed, difference, said, where
from experiments.evidence.training.classifier import trained_accuracy
from experiments.evidence.training.networks import convolutional

# Rule, and the modules (0-based) that hear the frame.
VARIANTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("backprop", ()),
    ("backprop", (1, 2)),
    ("sideways", ()),
    ("sideways", (1, 2)),
    ("pipelined_backprop", (1, 2)),
    ("tsm", ()),
)


def runs(scale: Scale) -> list[Run]:
    """All variants with the first seed, then with the next."""
    return [
        {
            "study": "direction",
            "rule": rule,
            "hear the frame": " ".join(map(str, hearing)) or "none",
            "updates": scale.updates or 500,
            "rate": 2e-3,
            "speed": 1.0,
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for rule, hearing in VARIANTS
    ]


def measure(run: Run) -> dict[str, float]:
    """Trains and tests once."""
    hearing = run["hear the frame"]
    shortcuts = [] if hearing == "none" else [(-1, int(i)) for i in hearing.split()]
    network = convolutional((16, 16, 32, 32), (1, 2, 1, 2), 8, shortcuts)
    accuracy = trained_accuracy(
        network, run["rule"], digits(run["speed"]),
        rate=run["rate"], seed=run["seed"], updates=run["updates"],
    )  # fmt: skip
    return {"test accuracy": accuracy}


def digits(speed: float):
    """The data: 32 clips of 14 frames in a batch, and 960 test clips."""
    config = default_config("moving_digits")
    config.task, config.speed = "direction", speed
    config.size, config.digit_size = 20, 8
    config.num_frames = config.length = 14
    config.batch_size = 32
    config.num_test = 120
    return config


def answer(rows: Sequence[Row]) -> list[str]:
    """What the memory of pipelined backprop gives, in the same network."""
    sees = where(rows, **{"hear the frame": "1 2"})
    ours = where(sees, rule="sideways")
    return [
        said(
            difference(ours, where(sees, rule=other), "test accuracy"),
            f"Test accuracy with shortcuts from the frame, Sideways - {NAMES[other]}",
            higher="Sideways is better", lower=f"{NAMES[other]} is better", points=True,
        )
        for other in ("pipelined_backprop", "backprop")
    ]  # fmt: skip


def picture(rows: Sequence[Row]) -> Figure:
    """A bar for every variant."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    summaries = by_seed(rows, [_variant(row) for row in rows], STUDY.value)
    names = [
        NAMES[one.run["rule"]]
        + ("" if one.run["hear the frame"] == "none" else "\nwith shortcuts\nfrom the frame")
        for one in summaries
    ]
    bars(axes, summaries, names)
    axes.axhline(1 / 8, color="0.4", linestyle=":", label="chance")
    axes.set(ylim=(0, 1), ylabel="test accuracy", title="Which way does the digit move?")
    axes.legend(loc="upper left")
    return figure


def _variant(row: Row) -> Run:
    return {name: row[name] for name in ("rule", "hear the frame", "seed")}


STUDY = Study(
    title="Direction of motion: test accuracy",
    runs=runs,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    question="Where only motion tells the class: do wrong gradients learn it?",
    answer=answer,
    minutes=10,
)
