"""Figures 4 and 5: loss, gradients and training accuracy over updates, at several rates.

**What the paper says.** With a rate above 1e-4 the loss of Simple-CNN becomes unstable with
Sideways, and not with backprop; the training accuracy does not collapse. VGG-8 behaves alike with
both.
**Data, networks** as in `table1`, speed 1 with clutter, no weight decay. Simple-CNN at the rates
2e-3, 4e-3, 8e-3 and 1.6e-2, VGG-8 at 4e-3 and 3.2e-2, three seeds.

**Planned statistics.** Instability: the largest mean loss of 10 updates in the second half of a
run over the median of these means; Sideways - backprop, and Sideways - pipelined backprop,
paired, of its logarithm, at the largest rate and at the smallest. Collapse: a run whose training
accuracy in the last tenth is below half of its best tenth; how many are counted. A loss that is
not finite counts as a collapse, and has no instability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.rig.suite import COLOURS
from experiments.evidence.study import NAMES, RULES, Row, Run, Scale, Study, Table
from experiments.evidence.summary import (
    did_not_train,
    difference,
    logarithmic,
    mean_of,
    named,
    said,
    shown,
    where,
)
from experiments.evidence.training import recipes
from experiments.evidence.training.clips import clips, digits
from experiments.evidence.training.recipes import CURVES, Recipe

RATES = {"simple_cnn": (2e-3, 4e-3, 8e-3, 1.6e-2), "vgg8": (4e-3, 3.2e-2)}
BLOCK = 10  # updates whose mean is kept


def runs(scale: Scale) -> list[Run]:
    """All rates and rules with the first seed, then with the next."""
    rates = {"smoke": (1e-2,)} if scale.smoke else RATES
    return [
        {
            "study": "figures4_5",
            "network": network,
            "rate": rate,
            "rule": rule,
            "updates": scale.updates or recipes.UPDATES.get(network, 2 * BLOCK),
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for network, some in rates.items()
        for rate in some
        for rule in RULES
    ]


def measure(run: Run) -> dict[str, object]:
    """Trains once, and keeps the means of every few updates."""
    config = digits(run["network"] == "smoke")
    learned = recipes.learn(
        Recipe(run["network"], run["rule"]), clips(config, seed=run["seed"]).train,
        rate=run["rate"], seed=run["seed"], updates=run["updates"],
    )  # fmt: skip
    blocks = {name: _blocks(values) for name, values in learned.curves.items()}
    accuracies = np.asarray(blocks["accuracy"])
    tenth = max(1, len(accuracies) // 10)
    tenths = [accuracies[n : n + tenth].mean() for n in range(0, len(accuracies), tenth)]
    finite = bool(np.isfinite(blocks["loss"]).all())
    later = np.asarray(blocks["loss"])[len(accuracies) // 2 :]
    return {
        **blocks,
        "instability": float(later.max() / np.median(later)) if finite else None,
        "training accuracy": float(tenths[-1]),
        "collapsed": not finite or bool(tenths[-1] < max(tenths) / 2),
    }


def _blocks(values: Sequence[float]) -> list[float]:
    means = (np.mean(values[n : n + BLOCK]) for n in range(0, len(values), BLOCK))
    return [float(f"{mean:.5g}") for mean in means]


def answer(rows: Sequence[Row]) -> list[str]:
    """Instability by pairs, and the number of collapses."""
    sentences = []
    for network in dict.fromkeys(row["network"] for row in rows):
        rates = sorted({row["rate"] for row in where(rows, network=network)})
        for rate in dict.fromkeys((rates[-1], rates[0])):
            here = where(rows, network=network, rate=rate)
            for other in ("backprop", "pipelined_backprop"):
                one = difference(where(here, rule="sideways"), where(here, rule=other), _log)
                sentences.append(
                    said(one, f"{named(network)}, rate {rate:g}: log of the instability, "
                         f"Sideways - {NAMES[other]}", template="{:+.2f}",
                         higher="Sideways is less stable", lower="Sideways is more stable")
                )  # fmt: skip
    counts = [f"{NAMES[rule]} {sum(row['collapsed'] for row in where(rows, rule=rule))} of "
              f"{len(where(rows, rule=rule))}" for rule in RULES]  # fmt: skip
    collapsed = f"Runs that collapsed: {', '.join(counts)}."
    return [collapsed, did_not_train(rows, 1 / recipes.CLASSES), *sentences]


def _log(row: Row) -> float | None:
    return None if row["instability"] is None else math.log(row["instability"])


def _last_loss(row: Row) -> float:
    """The mean of the last tenth of the updates."""
    loss = row["loss"]
    return float(np.mean(loss[-max(1, len(loss) // 10) :]))


def tables(rows: Sequence[Row]) -> list[Table]:
    """Instability and accuracy by network, rate and rule."""
    lines = []
    for network, rate in dict.fromkeys((row["network"], row["rate"]) for row in rows):
        for rule in RULES:
            some = where(rows, network=network, rate=rate, rule=rule)
            lines.append([named(network), f"{rate:g}", NAMES[rule],
                          shown(mean_of(some, "instability"), "{:.2f}"),
                          ", ".join(f"{_last_loss(row):.3g}" for row in some),
                          shown(mean_of(some, "training accuracy"), "{:.1%}"),
                          f"{sum(row['collapsed'] for row in some)} of {len(some)}"])  # fmt: skip
    header = ("network", "rate", "rule", "instability", "loss at the end, each seed",
              "training accuracy", "collapsed")  # fmt: skip
    return [Table("Training dynamics", header, lines)]


def picture(rows: Sequence[Row]) -> Figure:
    """A row for every curve, a column for every network and rate; a line for every seed."""
    columns = list(dict.fromkeys((row["network"], row["rate"]) for row in rows))
    figure = Figure(figsize=(2.4 * len(columns) + 0.8, 8), layout="constrained")
    grid = figure.subplots(len(CURVES), len(columns), sharex="col", squeeze=False)
    for column, (network, rate) in enumerate(columns):
        for axes, name in zip(grid[:, column], CURVES, strict=True):
            for rule in RULES:
                some = where(rows, network=network, rate=rate, rule=rule)
                for row in some:
                    x = BLOCK * (np.arange(len(row[name])) + 1)
                    label = NAMES[rule] if row is some[0] else None
                    axes.plot(x, row[name], color=COLOURS[rule], label=label, lw=0.8, alpha=0.8)
            if name in ("loss", "norm of gradients"):
                logarithmic(axes)
            if name == "accuracy":
                axes.set_ylim(0, 1)
            axes.tick_params(labelsize=7)
            axes.set_ylabel(name if column == 0 else "", fontsize=8)
        grid[0, column].set_title(f"{named(network)}, {rate:g}", fontsize=9)
        grid[-1, column].set_xlabel("updates", fontsize=8)
    grid[0, 0].legend(fontsize=7)
    return figure


STUDY = Study(
    title="Figures 4 and 5: training dynamics",
    question="Is the loss of Sideways unstable at higher rates, and does its accuracy hold?",
    runs=runs,
    measure=measure,
    value="training accuracy",
    format="{:.1%}",
    picture=picture,
    answer=answer,
    tables=tables,
    minutes=9,
    seeds=3,
)
