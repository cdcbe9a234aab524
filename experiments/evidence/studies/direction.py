"""The direction task: a single frame says nothing, so what is learned is motion.

Digits of 8x8 pixels move over a torus of 20x20, one pixel a frame; the class is one of eight
directions (`moving_digits` with `task="direction"`). Five modules of two-dimensional convolutions.
In a pipeline shortcuts from the frame bring modules newer frames than the main path does, so that
they can see motion (Skip-Sideways). Synchronous networks see one frame at a time, but for TSM
(`experiments.evidence.training.tsm`), where a part of the channels is of the frame before.

First the network of the first comparison, a convolution in every module, two of which hear the
frame, all modules at one rate. A search with one seed then showed when wrong gradients learn motion
(docs/temporal.md), and its two answers are compared with more seeds:

* what needs two frames is in one module of three convolutions, the last one or that below it. The
  gradient of the last module is exact, and that of the module below it nearly, behind a mean over
  all pixels;
* the lower a module, the smaller its rate: divided by (1 + T)^2, T = 2(D-1-i), the steps by which
  its gradient is late (`delayed_optimizer.scale_by_delay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from data import default_config
from experiments.benchmarks.rig.suite import COLOURS
from experiments.evidence.study import NAMES, Row, Run, Scale, Study, Table
from experiments.evidence.summary import Summary, by_seed, difference, said, shown, where
from experiments.evidence.training.classifier import trained_accuracy
from experiments.evidence.training.networks import convolutional, with_receiver

SLOWER = "rates over (1+T)^"
RECEIVER = "convolutions of the receiver"  # rows of before there was a choice have neither name


class Variant(NamedTuple):
    """What differs between the runs of a seed."""

    rule: str
    hearing: tuple[int, ...] = ()  # the modules (0-based) that hear the frame
    slower: float = 0.0  # the power of (1 + T) that rates are divided by
    receiver: bool = False  # whether one module of three convolutions hears it, or each has one


VARIANTS = (
    Variant("backprop"),
    Variant("backprop", (1, 2)),
    Variant("sideways"),
    Variant("sideways", (1, 2)),
    Variant("pipelined_backprop", (1, 2)),
    Variant("tsm"),
    Variant("sideways", (1, 2), slower=2.0),
    Variant("backprop", (4,), receiver=True),
    Variant("sideways", (4,), receiver=True),
    Variant("sideways", (4,), slower=2.0, receiver=True),
    Variant("pipelined_backprop", (4,), receiver=True),
    Variant("sideways", (3,), receiver=True),
    Variant("sideways", (3,), slower=2.0, receiver=True),
    Variant("pipelined_backprop", (3,), receiver=True),
)


def runs(scale: Scale) -> list[Run]:
    """All variants with the first seed, then with the next."""
    return [_run(variant, scale, seed) for seed in range(scale.seeds) for variant in VARIANTS]


def _run(variant: Variant, scale: Scale, seed: int) -> Run:
    rate = 3e-3 if variant.receiver else 2e-3
    run: Run = {
        "study": "direction",
        "rule": variant.rule,
        "hear the frame": " ".join(map(str, variant.hearing)) or "none",
        "updates": scale.updates or 500,
        # Another name: a run is found by all that it has, and one at equal rates has no other.
        **({"rate of the top": rate, SLOWER: variant.slower} if variant.slower else {"rate": rate}),
        "speed": 1.0,
    }
    if variant.receiver:
        run |= {RECEIVER: 3, "clips": 16}
    return run | {"seed": seed}


def measure(run: Run) -> dict[str, float]:
    """Trains and tests once."""
    hearing = [int(i) for i in run["hear the frame"].replace("none", "").split()]
    if RECEIVER in run:
        network = with_receiver(hearing[0], 8)
    else:
        network = convolutional((16, 16, 32, 32), (1, 2, 1, 2), 8, [(-1, i) for i in hearing])
    accuracy = trained_accuracy(
        network, run["rule"], digits(run["speed"], run.get("clips", 32)),
        rate=run["rate of the top" if SLOWER in run else "rate"], seed=run["seed"],
        updates=run["updates"], slower=run.get(SLOWER, 0.0),
    )  # fmt: skip
    return {"test accuracy": accuracy}


def digits(speed: float, clips: int = 32):
    """The data: clips of 14 frames, so many in a batch, and 960 test clips."""
    config = default_config("moving_digits")
    config.task, config.speed = "direction", speed
    config.size, config.digit_size = 20, 8
    config.num_frames = config.length = 14
    config.batch_size = clips
    config.num_test = 120
    return config


def answer(rows: Sequence[Row]) -> list[str]:
    """What the memory of pipelined backprop gives in the same network, and smaller rates below."""
    sentences = []
    for hearing, receiver in (((1, 2), False), ((3,), True), ((4,), True)):
        ours = _of(rows, Variant("sideways", hearing, 0.0, receiver))
        others = {
            "pipelined backprop": Variant("pipelined_backprop", hearing, 0.0, receiver),
            "backprop": Variant("backprop", hearing, 0.0, receiver),
            "Sideways with smaller rates below": Variant("sideways", hearing, 2.0, receiver),
        }
        for name, other in others.items():
            if other not in VARIANTS:
                continue
            sentences.append(
                said(
                    difference(ours, _of(rows, other), "test accuracy"),
                    f"Test accuracy where {_hears(hearing)} the frame, "
                    f"Sideways - {name}",
                    higher="Sideways is better", lower=f"{name} is better", points=True,
                )
            )  # fmt: skip
    return sentences


def _of(rows: Sequence[Row], variant: Variant) -> list[Row]:
    """The rows of a variant."""
    run = _run(variant, Scale(), 0)
    same = {name: run.get(name) for name in ("rule", "hear the frame", SLOWER, RECEIVER)}
    return where(rows, **same)


def _listed(hearing: Sequence[int]) -> str:
    return " and ".join(map(str, hearing)) or "none"


def _hears(hearing: Sequence[int]) -> str:
    """The beginning of a sentence."""
    many = len(hearing) > 1
    return f"{'modules' if many else 'module'} {_listed(hearing)} {'hear' if many else 'hears'}"


def _summaries(rows: Sequence[Row]) -> list[tuple[Variant, Summary]]:
    """Of the variants that have rows."""
    found = []
    for variant in VARIANTS:
        some = _of(rows, variant)
        runs_of_it = [{"rule": variant.rule, "seed": row["seed"]} for row in some]
        found += [(variant, one) for one in by_seed(some, runs_of_it, STUDY.value)]
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """A line for every variant."""
    lines = [
        [
            NAMES[variant.rule],
            "one module of three" if variant.receiver else "one in each module",
            _listed(variant.hearing),
            f"over (1+T)^{variant.slower:g}" if variant.slower else "equal",
            shown(one, STUDY.format),
            str(len(one.values)),
        ]
        for variant, one in _summaries(rows)
    ]
    header = ["rule", "convolutions", "hear the frame", "rates", STUDY.value, "seeds"]
    return [Table(STUDY.title, header, lines)]


def picture(rows: Sequence[Row]) -> Figure:
    """A bar for every variant, and a dot for every seed."""
    found = _summaries(rows)
    figure = Figure(figsize=(9, 0.9 + 0.36 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, (variant, one) in enumerate(found):
        axes.barh(
            place, one.mean, xerr=np.nan_to_num(one.half_width), color=COLOURS[variant.rule],
            alpha=0.75, capsize=3,
        )  # fmt: skip
        axes.plot(one.values, np.full(len(one.values), place), "k.", markersize=4)
    axes.set_yticks(range(len(found)), [_name(variant) for variant, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1 / 8, color="0.4", linestyle=":", label="chance")
    axes.axvline(0.8, color="0.4", linestyle="--", label="the goal")
    axes.set(xlim=(0, 1.02), xlabel="test accuracy", title="Which way does the digit move?")
    axes.legend(loc="upper right", fontsize=8)
    return figure


def _name(variant: Variant) -> str:
    parts = [NAMES[variant.rule]]
    if variant.hearing:
        parts.append(f"{_hears(variant.hearing)} the frame")
    if variant.receiver:
        parts.append("three convolutions")
    if variant.slower:
        parts.append("smaller rates below")
    return ", ".join(parts)


STUDY = Study(
    title="Direction of motion: test accuracy",
    runs=runs,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    question="Where only motion tells the class: do wrong gradients learn it?",
    answer=answer,
    tables=tables,
    minutes=10,
)
