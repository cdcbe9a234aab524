"""Figure 6: how much may the frames of a clip differ?

**What the paper says.** With strides of 2 to 6 training with Sideways holds at a favourable rate,
and collapses for larger strides at an unfavourable one; with backprop, too.
**Data** as in `table1`, speed 1 with clutter; strides 1 to 6, and the frames of every training
clip in a random order ("random"). Simple-CNN with a quarter of the channels, at a favourable
rate, 3e-3, and an unfavourable one, 1e-2; three seeds. Tests are on clips at a stride of 1: a
network of single frames does not know the stride.

**Planned statistics.** Test accuracy and training accuracy (last tenth of the updates), means
with intervals. For each rule and rate the paired differences to stride 1, of stride 6 and of the
random order; for each of these, Sideways - pipelined backprop, paired: what the wrong gradients
cost there. A collapse is a training accuracy in the last tenth below half of that of stride 1
with the same seed, rule and rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.evidence.study import NAMES, RULES, Row, Run, Scale, Study, Table
from experiments.evidence.summary import (
    did_not_train,
    difference,
    lines_by_rule,
    mean_of,
    said,
    shown,
    where,
)
from experiments.evidence.training import recipes
from experiments.evidence.training.clips import clips, digits, shuffled
from experiments.evidence.training.recipes import Recipe

STRIDES = ("1", "2", "3", "4", "5", "6", "random")
RATES = {"favourable": 3e-3, "unfavourable": 1e-2}


def runs(scale: Scale) -> list[Run]:
    """All of it with the first seed, then with the next."""
    strides, kinds = (("1", "6", "random"), ["favourable"]) if scale.smoke else (STRIDES, RATES)
    return [
        {
            "study": "figure6",
            "network": "smoke" if scale.smoke else "simple_cnn",
            "kind": kind,
            "rate": RATES[kind],
            "stride": stride,
            "rule": rule,
            "updates": scale.updates or (2 if scale.smoke else recipes.UPDATES["simple_cnn"]),
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for kind in kinds
        for stride in strides
        for rule in RULES
    ]


def measure(run: Run) -> dict[str, float]:
    """Trains once, and tests."""
    is_random = run["stride"] == "random"
    config = digits(run["network"] == "smoke", stride=1 if is_random else int(run["stride"]))
    data = clips(config, seed=run["seed"])
    batches = shuffled(data.train, run["seed"]) if is_random else data.train
    recipe = Recipe(run["network"], run["rule"])
    learned = recipes.learn(
        recipe, batches, rate=run["rate"], seed=run["seed"], updates=run["updates"]
    )
    tested = recipes.test(recipe, learned.params, learned.state, data.tests["test"])
    last = learned.curves["accuracy"][-max(1, run["updates"] // 10) :]
    return {"test accuracy": tested.accuracy, "training accuracy": float(np.mean(last))}


def answer(rows: Sequence[Row]) -> list[str]:
    """What stride 6 and a random order cost, and how many runs collapsed."""
    sentences = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        here = where(rows, kind=kind)
        for stride in ("6", "random"):
            name = "random order" if stride == "random" else f"stride {stride}"
            for rule in RULES:
                some = where(here, rule=rule, stride=stride)
                one = difference(some, where(here, rule=rule, stride="1"), "test accuracy")
                sentences.append(
                    said(one, f"{kind} rate, {NAMES[rule]}: test accuracy, {name} - stride 1",
                         points=True, higher="it gains", lower="it loses")
                )  # fmt: skip
            one = difference(
                where(here, rule="sideways", stride=stride),
                where(here, rule="pipelined_backprop", stride=stride), "test accuracy",
            )  # fmt: skip
            sentences.append(
                said(one, f"{kind} rate, {name}: Sideways - pipelined backprop", points=True,
                     higher="wrong gradients do better", lower="wrong gradients cost this")
            )  # fmt: skip
    counts = [f"{NAMES[rule]} {len(_collapsed(rows, rule))} of {len(where(rows, rule=rule))}"
              for rule in RULES]  # fmt: skip
    collapsed = f"Runs that collapsed: {', '.join(counts)}."
    return [collapsed, did_not_train(rows, 1 / recipes.CLASSES), *sentences]


def _collapsed(rows: Sequence[Row], rule: str) -> list[Row]:
    some = where(rows, rule=rule)
    at_one = {(row["kind"], row["seed"]): row["training accuracy"]
              for row in where(some, stride="1")}  # fmt: skip
    return [
        row for row in some
        if row["training accuracy"] < at_one.get((row["kind"], row["seed"]), 0) / 2
    ]  # fmt: skip


def tables(rows: Sequence[Row]) -> list[Table]:
    """Test accuracy (training accuracy) by stride and rate."""
    lines = []
    for kind, stride in dict.fromkeys((row["kind"], row["stride"]) for row in rows):
        cells = []
        for rule in RULES:
            some = where(rows, kind=kind, stride=stride, rule=rule)
            train = mean_of(some, "training accuracy").mean if some else float("nan")
            cells.append(f"{shown(mean_of(some, 'test accuracy'), '{:.1%}')} ({train:.1%})")
        lines.append([f"{kind}, {RATES[kind]:g}", stride, *cells, str(len(some))])
    header = ["rate", "stride", *(NAMES[rule] for rule in RULES), "seeds"]
    return [Table("Test accuracy (training accuracy) against the stride", header, lines)]


def picture(rows: Sequence[Row]) -> Figure:
    """Test accuracy against the stride, a panel for every rate."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(kinds)), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        lines_by_rule(
            axes, where(rows, kind=kind), "stride", "test accuracy",
            lambda stride, shift: STRIDES.index(stride) + 0.08 * shift,
        )  # fmt: skip
        axes.set_xticks(range(len(STRIDES)), STRIDES)
        axes.set(title=f"{kind} rate, {RATES[kind]:g}", xlabel="stride", ylim=(0, 1))
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(fontsize=8)
    return figure


STUDY = Study(
    title="Figure 6: frame rate",
    question="How much may consecutive frames differ before Sideways fails?",
    runs=runs,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    answer=answer,
    tables=tables,
    minutes=18,
    seeds=3,
)
