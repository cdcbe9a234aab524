"""Data that is no video: can clips be made of pictures, so that Sideways trains on them?

**What was said.** A reader's review of the paper asks for data without time, and proposes to make
neighbouring inputs alike.
**Data.** Pictures of digits as clips of 20 frames (`training/pictures.py`): still, panned,
zoomed, blended with others of their class, shuffled within their class, and mixed, any class in
every frame with its own label. 300 pictures to learn, 360 others, standing still, to test.
Simple-CNN with a quarter of the channels, rate 4e-3, 600 updates, five seeds. Outputs are
compared with the label of their own frame (`target="origin"`) if "mixed", where another would be
wrong.

**Planned statistics.** Test accuracy, means with intervals. For every kind Sideways - pipelined
backprop and Sideways - backprop, paired. Sideways "trains" on a kind if its interval is above
twice chance, 20%.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.evidence.study import NAMES, RULES, Row, Run, Scale, Study
from experiments.evidence.summary import bars_by_rule, difference, mean_of, said, shown, where
from experiments.evidence.training import pictures, recipes
from experiments.evidence.training.recipes import Recipe

RATE = 4e-3


def runs(scale: Scale) -> list[Run]:
    """All kinds and rules with the first seed, then with the next."""
    return [
        {
            "study": "not_video",
            "network": "smoke" if scale.smoke else "simple_cnn",
            "kind": kind,
            "rule": rule,
            "updates": scale.updates or (2 if scale.smoke else recipes.UPDATES["simple_cnn"]),
            "rate": RATE,
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for kind in pictures.KINDS
        for rule in RULES
    ]


def measure(run: Run) -> dict[str, float]:
    """Trains once, and tests on pictures that stand still."""
    target = "origin" if run["kind"] == "mixed" else "stream"
    recipe = Recipe(run["network"], run["rule"], target=target)
    size = pictures.SMOKE if run["network"] == "smoke" else pictures.Size()
    data = pictures.clips(run["kind"], size, seed=run["seed"])
    learned = recipes.learn(
        recipe, data.train, rate=run["rate"], seed=run["seed"], updates=run["updates"]
    )
    tested = recipes.test(recipe, learned.params, learned.state, data.tests["test"])
    return {"test accuracy": tested.accuracy, "test nll": tested.nll}


def answer(rows: Sequence[Row]) -> list[str]:
    """Where Sideways trains, and what it loses to the other rules."""
    sentences = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        here = where(rows, kind=kind)
        own = mean_of(where(here, rule="sideways"), "test accuracy")
        trains = own.mean - own.half_width > 0.2  # False for a single seed.
        verdict = "it trains" if trains else "not shown to train"
        if len(own.values) < 2:
            verdict = "one seed, no claim"
        sentences.append(f"{kind}: Sideways {shown(own, '{:.1%}')}: {verdict}.")
        for other in ("pipelined_backprop", "backprop"):
            one = difference(where(here, rule="sideways"), where(here, rule=other), "test accuracy")
            sentences.append(
                said(one, f"{kind}, Sideways - {NAMES[other]}", points=True,
                     higher="Sideways is better", lower=f"{NAMES[other]} is better")
            )  # fmt: skip
    return sentences


def picture(rows: Sequence[Row]) -> Figure:
    """Test accuracy of every kind and rule."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    bars_by_rule(axes, rows, "kind", "test accuracy")
    axes.axhline(0.1, color="0.4", linestyle=":", label="chance")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylim=(0, 1), ylabel="test accuracy on stills", title="Clips made of pictures")
    figure.legend(fontsize=8, loc="outside right upper")  # Not over the bars.
    return figure


STUDY = Study(
    title="Data that is no video",
    question="Can clips be made of pictures, so that Sideways trains on them?",
    runs=runs,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    answer=answer,
    minutes=12,
)
