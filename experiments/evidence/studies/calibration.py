"""Confident mistakes: is a network that Sideways trained too sure of itself, and what helps?

**What was said.** The paper finds that Simple-CNN with Sideways and larger rates is sure of its
mistakes, so that its loss is high where its accuracy is not low; a reader's review takes this for
the method's drawback.
**Data, networks** as in `table1`, speed 1 with clutter, at a rate of 4e-3. Remedies: a third of
it, label smoothing of 0.1, and, in VGG-8, dropout of 0.5. Tests after each quarter of the
updates, five seeds.

**Planned statistics.** On test videos at the end: expected calibration error (15 bins) and
negative log-likelihood, means with intervals; the paired differences Sideways - backprop and
Sideways - pipelined backprop of the plain variants; and of each remedy to plain, with Sideways.
The mean confidence of wrong predictions is shown, not tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.rig.suite import COLOURS
from experiments.evidence.study import NAMES, RULES, Row, Run, Scale, Study, Table
from experiments.evidence.summary import band, difference, mean_of, named, said, shown, where
from experiments.evidence.training import recipes
from experiments.evidence.training.clips import clips, digits
from experiments.evidence.training.recipes import Recipe
from experiments.jobs.classification.scores import BINS, outcomes

RATE = 4e-3
VARIANTS = (
    ("simple_cnn", "plain"),
    ("vgg8", "plain"),
    ("simple_cnn", "smaller rate"),
    ("simple_cnn", "label smoothing"),
    ("vgg8", "label smoothing"),
    ("vgg8", "dropout"),
)
QUARTERS = 4


def runs(scale: Scale) -> list[Run]:
    """All variants and rules with the first seed, then with the next."""
    variants = (("smoke", "plain"), ("smoke", "smaller rate")) if scale.smoke else VARIANTS
    return [
        {
            "study": "calibration",
            "network": network,
            "remedy": remedy,
            "rule": rule,
            "updates": scale.updates or recipes.UPDATES.get(network, QUARTERS),
            "rate": RATE / (3 if remedy == "smaller rate" else 1),
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for network, remedy in variants
        for rule in RULES
    ]


def measure(run: Run) -> dict[str, object]:
    """Trains once; tests after every quarter."""
    remedy, updates = run["remedy"], run["updates"]
    recipe = Recipe(
        run["network"], run["rule"],
        dropout=0.5 if remedy == "dropout" else 0.0,
        smoothing=0.1 if remedy == "label smoothing" else 0.0,
    )  # fmt: skip
    data = clips(digits(run["network"] == "smoke"), seed=run["seed"])
    tested: list[recipes.Tested] = []

    def look(n: int, params: tuple, state: tuple) -> None:
        del n
        tested.append(recipes.test(recipe, params, state, data.tests["test"]))

    looks = [max(1, round(n * updates / QUARTERS)) for n in range(1, QUARTERS + 1)]
    recipes.learn(
        recipe, data.train, rate=run["rate"], seed=run["seed"], updates=updates, looks=looks,
        look=look,
    )  # fmt: skip
    confidence, right = outcomes(*tested[-1])
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    wrong = confidence[~right]
    return {
        "after updates": looks,
        "ece": [one.ece for one in tested],
        "nll": [one.nll for one in tested],
        "accuracy": [one.accuracy for one in tested],
        "last ece": tested[-1].ece,
        "last nll": tested[-1].nll,
        "test accuracy": tested[-1].accuracy,
        "confidence of mistakes": float(wrong.mean()) if wrong.size else None,
        "bins": {
            "predictions": np.bincount(places, minlength=BINS).tolist(),
            "confidence": np.bincount(places, confidence, minlength=BINS).tolist(),
            "right": np.bincount(places, right, minlength=BINS).tolist(),
        },
    }


def answer(rows: Sequence[Row]) -> list[str]:
    """Plain variants by rule, then the remedies with Sideways."""
    sentences = []
    for network in dict.fromkeys(row["network"] for row in rows):
        plain = where(rows, network=network, remedy="plain")
        of_sideways = where(plain, rule="sideways")
        for value, name in (("last ece", "calibration error"), ("last nll", "NLL")):
            for other in ("backprop", "pipelined_backprop"):
                one = difference(of_sideways, where(plain, rule=other), value)
                sentences.append(
                    said(one, f"{named(network)}: {name}, Sideways - {NAMES[other]}",
                         higher="Sideways is worse", lower="Sideways is better")
                )  # fmt: skip
            remedies = dict.fromkeys(row["remedy"] for row in where(rows, network=network))
            for remedy in (name for name in remedies if name != "plain"):
                some = where(rows, network=network, remedy=remedy, rule="sideways")
                one = difference(some, of_sideways, value)
                sentences.append(
                    said(one, f"{named(network)}, Sideways: {name}, {remedy} - plain",
                         higher=f"{remedy} does harm", lower=f"{remedy} helps")
                )  # fmt: skip
    return sentences


def tables(rows: Sequence[Row]) -> list[Table]:
    """All measures at the end, by variant and rule."""
    lines = []
    for network, remedy in dict.fromkeys((row["network"], row["remedy"]) for row in rows):
        for rule in RULES:
            some = where(rows, network=network, remedy=remedy, rule=rule)
            sure = [row for row in some if row["confidence of mistakes"] is not None]
            lines.append([named(network), remedy, NAMES[rule],
                          shown(mean_of(some, "last ece"), "{:.3f}"),
                          shown(mean_of(some, "last nll"), "{:.2f}"),
                          shown(mean_of(some, "test accuracy"), "{:.1%}"),
                          shown(mean_of(sure, "confidence of mistakes"), "{:.2f}"),
                          str(len(some))])  # fmt: skip
    header = ("network", "remedy", "rule", "ECE", "NLL", "test accuracy", "confidence of mistakes",
              "seeds")  # fmt: skip
    return [Table("Calibration on test videos, after the last update", header, lines)]


def picture(rows: Sequence[Row]) -> Figure:
    """Reliability diagrams of all variants, below them the calibration error over training."""
    variants = list(dict.fromkeys((row["network"], row["remedy"]) for row in rows))
    figure = Figure(figsize=(2.3 * len(variants) + 0.6, 5.2), layout="constrained")
    grid = figure.subplots(2, len(variants), sharey="row", squeeze=False)
    for column, (network, remedy) in enumerate(variants):
        above, below = grid[:, column]
        above.plot([0, 1], [0, 1], color="0.6", lw=0.8)
        for rule in RULES:
            some = where(rows, network=network, remedy=remedy, rule=rule)
            if not some:
                continue
            sums = {name: np.sum([row["bins"][name] for row in some], axis=0)
                    for name in some[0]["bins"]}  # fmt: skip
            filled = sums["predictions"] >= 20  # Fewer say little.
            x, y = (sums[name][filled] / sums["predictions"][filled]
                    for name in ("confidence", "right"))  # fmt: skip
            style = {"color": COLOURS[rule], "label": NAMES[rule], "lw": 1.2}
            above.plot(x, y, marker=".", **style)
            band(below, some[0]["after updates"], [row["ece"] for row in some], **style)
        above.set_title(f"{named(network)},\n{remedy}", fontsize=9)
        above.set_xlabel("confidence", fontsize=8)
        below.set_xlabel("updates", fontsize=8)
    grid[0, 0].set_ylabel("accuracy of the bin", fontsize=8)
    grid[1, 0].set_ylabel("calibration error", fontsize=8)
    grid[1, 0].legend(fontsize=7)
    return figure


STUDY = Study(
    title="Confident mistakes",
    question="Is a network that Sideways trained too sure of its mistakes, and what helps?",
    runs=runs,
    measure=measure,
    value="last ece",
    format="{:.3f}",
    picture=picture,
    answer=answer,
    tables=tables,
    minutes=14,
)
