"""Table 1: does Sideways train as well as backprop?

**Data.** Moving digits with clutter, 28x28 pixels, 300 digits to learn and 360 others to test,
clips of 20 frames, batches of 8 clips; speeds of 0.5, 1 and 2 pixels a frame, and speed 1 without
clutter.
**Networks.** Simple-CNN with a quarter of the paper's channels; VGG-8 with an eighth, without
dropout and with 0.5 (0.9, the paper's, leaves 13 of these 128 units).
**Search.** For every network and rule the paper's four weight decays (0, 1e-4, 1e-3, 1e-2, not
multiplied by the rate) and two rates. The paper's 1e-4 and 1e-5 are for 1e5 updates; Simple-CNN
has 600 here and VGG-8 300: 4e-3 and 2e-3. One seed that is used nowhere else, at speed 1 with
clutter; the accuracy on training digits that the search holds out chooses, the higher rate and
the smaller decay if equal.
**Comparison.** With the chosen pair, five seeds, all conditions, the same updates; and backprop
with the updates that it has for the operations of Sideways' run (counted by the compiler), at
speed 1 with clutter.
**Longer**: four times the updates at half the chosen rate, without dropout, at speed 1 with
clutter: is a difference only that of a short training, or of a rate that is too high for one rule?
(Added when the comparison had been seen: Sideways fits less there, at the smallest rates.)
**Real clips** (`--videos=DIR`): which third of which file is it? Learned from the first 60% of
every third, tested on the rest; the same networks, the pairs that were chosen on drawn digits,
five seeds, the same updates.

**Planned statistics.** Test accuracy: means with 95% intervals, and the paired differences
Sideways - backprop, Sideways - pipelined backprop (wrong gradients), pipelined backprop -
backprop (the pipeline), a seed's conditions averaged first. Regularising effect: the paired
difference of (training - test accuracy), Sideways - backprop. It is there if that is below zero
and the test accuracy of Sideways is not lower: a network that fits less has a smaller gap, too.
Longer, and real clips: the first two differences, by themselves; tests of real clips are few,
and of three scenes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.evidence import summary
from experiments.evidence.study import NAMES, RULES, SEARCH_SEED, Row, Run, Scale, Study, Table
from experiments.evidence.summary import (
    at_an_edge,
    bars,
    by_seed,
    difference,
    mean_of,
    said,
    shown,
    where,
)
from experiments.evidence.training import real_clips, recipes
from experiments.evidence.training.clips import Clips, clips, digits
from experiments.evidence.training.recipes import Recipe

ARCHITECTURES = (("simple_cnn", 0.0), ("vgg8", 0.0), ("vgg8", 0.5))
CONDITIONS = ((1.0, 1), (0.5, 1), (2.0, 1), (1.0, 0))  # speed, clutter; the search is at the first
RATES = (4e-3, 2e-3)
LONGER = 4  # times the updates
DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
TITLES = {
    ("simple_cnn", 0.0): "Simple-CNN",
    ("vgg8", 0.0): "VGG-8",
    ("vgg8", 0.5): "VGG-8, dropout",
    ("smoke", 0.0): "smoke",
}
# Test accuracy of the paper, %, backprop and Sideways. Its VGG-8 has a dropout of 0.9.
PAPER = {
    "Simple-CNN": {"HMDB51": (17.2, 16.5), "UCF101": (40.7, 42.16)},
    "VGG-8": {"HMDB51": (24.6, 25.8), "UCF101": (49.1, 53.8)},
    "VGG-8, dropout 0.9": {"UCF101": (56.0, 58.2)},
}


def runs(scale: Scale) -> list[Run]:
    """The search."""
    architectures = (("smoke", 0.0),) if scale.smoke else ARCHITECTURES
    rates, decays = (RATES[:1], DECAYS[:2]) if scale.smoke else (RATES, DECAYS)
    return [
        _run(scale, "search", architecture, CONDITIONS[0], rule, rate, decay, SEARCH_SEED)
        for architecture in architectures
        for rule in RULES
        for rate in rates
        for decay in decays
    ]


def then(scale: Scale, rows: Sequence[Row]) -> list[Run]:
    """The comparison: all of it with the first seed, then with the next; real clips at last."""
    wanted = []
    architectures = list(dict.fromkeys((row["network"], row["dropout"]) for row in rows))
    conditions = CONDITIONS[:1] if scale.smoke else CONDITIONS
    best = {(*one, rule): chosen(rows, *one, rule) for one in architectures for rule in RULES}
    for seed in range(scale.seeds):
        for place, condition in enumerate(conditions):
            for one in architectures:
                for rule in RULES:
                    row = best[*one, rule]
                    run = _run(
                        scale, "updates", one, condition, rule, row["rate"], row["decay"], seed
                    )
                    wanted.append(run)
                    if place == 0 and rule == "backprop":
                        of_sideways = best[*one, "sideways"]["operations of an update"]
                        ratio = of_sideways / row["operations of an update"]
                        fewer = max(1, round(ratio * run["updates"]))
                        wanted.append(run | {"same": "compute", "updates": fewer})
    return [*wanted, *_real(scale, best), *_longer(scale, best)]


def _longer(scale: Scale, best: Mapping[tuple, Row]) -> list[Run]:
    return [
        _run(scale, "longer", one, CONDITIONS[0], rule, row["rate"] / 2, row["decay"], seed)
        | {"updates": LONGER * row["updates"]}
        for seed in range(scale.seeds)
        for (*one, rule), row in best.items()
        if row["dropout"] == 0
    ]


def _real(scale: Scale, best: Mapping[tuple, Row]) -> list[Run]:
    if not scale.videos:
        return []
    folder = os.path.abspath(os.path.expanduser(scale.videos))
    names = "study", "network", "dropout", "rule", "updates", "rate", "decay"
    return [
        {name: row[name] for name in names} | {"same": "real", "videos": folder, "seed": seed}
        for seed in range(scale.seeds)
        for row in best.values()
    ]


def _run(scale, same, architecture, condition, rule, rate, decay, seed) -> Run:
    return {
        "study": "table1",
        "same": same,
        "network": architecture[0],
        "dropout": architecture[1],
        "speed": condition[0],
        "clutter": condition[1],
        "rule": rule,
        "updates": scale.updates or recipes.UPDATES.get(architecture[0], 2),
        "rate": rate,
        "decay": decay,
        "seed": seed,
    }


def chosen(rows: Sequence[Row], network: str, dropout: float, rule: str) -> Row:
    """The row of the search with the best accuracy; the first of equal ones."""
    searched = where(rows, same="search", network=network, dropout=dropout, rule=rule)
    return max(searched, key=lambda row: row["test accuracy"])


def measure(run: Run) -> dict[str, float]:
    """Trains once; tests on other digits or frames, and on those it learned from.

    Raises:
      ValueError: for a folder without two videos that can be read.
    """
    recipe = Recipe(run["network"], run["rule"], dropout=run["dropout"])
    config, data = _data(run)
    learned = recipes.learn(
        recipe, data.train, rate=run["rate"], decay=run["decay"], seed=run["seed"],
        updates=run["updates"],
    )  # fmt: skip
    test, train = (
        recipes.test(recipe, learned.params, learned.state, data.tests[name])
        for name in ("test", "train")
    )
    shape = (config.batch_size, config.num_frames, config.size, config.size, 3)
    return {
        "test accuracy": test.accuracy,
        "training accuracy": train.accuracy,
        "test nll": test.nll,
        "operations of an update": recipes.operations(recipe, shape),
    }


def _data(run: Run) -> tuple[ConfigDict, Clips]:
    smoke = run["network"] == "smoke"
    if run["same"] != "real":
        config = digits(smoke, speed=run["speed"], clutter=run["clutter"])
        return config, clips(config, seed=run["seed"], search=run["same"] == "search")
    config = digits(smoke)
    return config, real_clips.clips_of_parts(
        run["videos"], size=config.size, frames=config.num_frames, batch=config.batch_size,
        seed=run["seed"],
    )  # fmt: skip


def answer(rows: Sequence[Row]) -> list[str]:
    """Paired differences of test accuracy, and of the gap between training and test."""
    compared, sentences = where(rows, same="updates"), []
    if not compared:
        return []
    by_rule = {rule: where(compared, rule=rule) for rule in RULES}
    shared = ("seed", "network", "dropout", "speed", "clutter")

    def gap(row: Row) -> float:
        return row["training accuracy"] - row["test accuracy"]

    for first, second, what in (
        ("sideways", "backprop", "all conditions, the same updates"),
        ("sideways", "pipelined_backprop", "what the wrong gradients change"),
        ("pipelined_backprop", "backprop", "what the pipeline changes"),
    ):
        one = difference(by_rule[first], by_rule[second], "test accuracy", shared)
        a, b = NAMES[first], NAMES[second]
        sentences.append(
            said(one, f"Test accuracy, {a} - {b} ({what})", points=True,
                 higher=f"{a} is better", lower=f"{b} is better")
        )  # fmt: skip
    for same, name in (
        ("longer", f"{LONGER} times the updates, half the rate"),
        ("real", "Real clips"),
    ):
        some = where(rows, same=same)
        for other in ("backprop", "pipelined_backprop") if some else ():
            one = difference(where(some, rule="sideways"), where(some, rule=other),
                             "test accuracy", ("seed", "network", "dropout"))  # fmt: skip
            sentences.append(
                said(one, f"{name}: test accuracy, Sideways - {NAMES[other]}", points=True,
                     higher="Sideways is better", lower=f"{NAMES[other]} is better")
            )  # fmt: skip
    central = where(by_rule["sideways"], speed=CONDITIONS[0][0], clutter=CONDITIONS[0][1])
    fewer = where(rows, same="compute")
    one = difference(central, fewer, "test accuracy", ("seed", "network", "dropout"))
    sentences.append(
        said(one, "At the same compute, where backprop has fewer updates, Sideways - backprop",
             points=True, higher="Sideways is better", lower="backprop is better")
    )  # fmt: skip
    one = difference(by_rule["sideways"], by_rule["backprop"], gap, shared)
    test = difference(by_rule["sideways"], by_rule["backprop"], "test accuracy", shared)
    fits_less = test.is_shown and test.mean < 0
    smaller = "it fits less, its test accuracy is lower, too" if fits_less else "it regularises"
    sentences.append(
        said(one, "Training - test accuracy, Sideways - backprop", points=True,
             higher="Sideways overfits more", lower=f"the gap is smaller with Sideways; {smaller}")
    )  # fmt: skip
    return [*sentences, *_edges(rows)]


def _edges(rows: Sequence[Row]) -> list[str]:
    searched = where(rows, same="search")
    rates = sorted({row["rate"] for row in searched})
    return at_an_edge(
        {
            f"{TITLES[one]}, {NAMES[rule]}": (chosen(rows, *one, rule)["rate"], rates)
            for one in dict.fromkeys(map(_architecture, searched))
            for rule in RULES
            if len(rates) > 1
        }
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """Accuracy by network and condition; the paper's; what the search chose."""
    compared = [row for same in ("updates", "longer", "real") for row in where(rows, same=same)]
    lines, choices = [], []
    for (network, dropout), clip in dict.fromkeys((_architecture(r), _clips(r)) for r in compared):
        some = [r for r in compared if (_architecture(r), _clips(r)) == ((network, dropout), clip)]
        cells = []
        for rule in RULES:
            of_rule = where(some, rule=rule)
            test, train = (mean_of(of_rule, f"{part} accuracy") for part in ("test", "training"))
            cells.append(f"{shown(test, '{:.1%}')} ({train.mean:.1%})")
        lines.append([TITLES[network, dropout], clip, *cells, str(len(of_rule))])
    for row in where(rows, same="search"):
        best = chosen(rows, row["network"], row["dropout"], row["rule"])
        mark = "chosen" if row is best else ""
        choices.append([TITLES[row["network"], row["dropout"]], NAMES[row["rule"]],
                        f"{row['rate']:g}", f"{row['decay']:g}", f"{row['test accuracy']:.1%}",
                        mark])  # fmt: skip
    header = ["network", "clips", *(NAMES[rule] for rule in RULES), "seeds"]
    found = [Table("Test accuracy (training accuracy), the same updates", header, lines)]
    if fewer := where(rows, same="compute"):
        found.append(
            summary.table(STUDY._replace(title="Backprop at the compute of Sideways, speed 1"),
                          fewer, [_variant(row) for row in fewer])
        )  # fmt: skip
    of_paper = [[name, data, f"{both[0]}%", f"{both[1]}%"]
                for name, by_data in PAPER.items() for data, both in by_data.items()]  # fmt: skip
    columns = "backprop", "Sideways"
    found.append(
        Table(
            "The paper's Table 1, of real videos", ["network", "data", *columns], of_paper, columns
        )
    )
    title = "The search: accuracy on training digits that were held out, one seed"
    header = ["network", "rule", "rate", "decay", "accuracy", ""]
    return [*found, Table(title, header, choices, aside=True)]


def _architecture(row: Row) -> tuple[str, float]:
    return row["network"], row["dropout"]


def _clips(row: Row) -> str:
    if row["same"] == "real":
        return "real"
    clip = f"speed {row['speed']:g}, {'clutter' if row['clutter'] else 'no clutter'}"
    return f"{clip}, {LONGER}x updates" if row["same"] == "longer" else clip


def _variant(row: Row) -> Run:
    names = "network", "dropout", "rule", "updates", "seed"
    return {name: row[name] for name in names}


def picture(rows: Sequence[Row]) -> Figure:
    """Bars at speed 1 with clutter, a panel for every network."""
    some = where(rows, same="updates", speed=CONDITIONS[0][0], clutter=CONDITIONS[0][1])
    architectures = list(dict.fromkeys((row["network"], row["dropout"]) for row in some))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(architectures)), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, architectures, strict=False):
        here = where(some, network=one[0], dropout=one[1])
        summaries = by_seed(here, [{"rule": r["rule"], "seed": r["seed"]} for r in here],
                            "test accuracy")  # fmt: skip
        bars(axes, summaries, [NAMES[s.run["rule"]].replace(" ", "\n") for s in summaries])
        axes.set_title(TITLES[one], fontsize=10)
    panels[0].set(ylabel="test accuracy", ylim=(0, 1))
    figure.suptitle("Moving digits with clutter, one pixel a frame, the same updates", fontsize=10)
    return figure


STUDY = Study(
    title="Table 1",
    question="Does Sideways train as well as backprop, and does it overfit less?",
    runs=runs,
    then=then,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    answer=answer,
    tables=tables,
    minutes=56,
)
