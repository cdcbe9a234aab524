"""The quickstart's config by all rules, at the same updates and at the same compute.

Compute is counted, not timed: floating-point operations of a train step, by the compiler, before
it optimises. Backprop needs more for a clip, since it back-propagates all frames; at the same
compute it gets fewer updates, and its schedule of the learning rate shrinks with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.configs import quickstart
from experiments.evidence.study import NAMES, RULES, Row, Run, Scale, Study
from experiments.evidence.summary import bars, by_seed, difference, said, where
from experiments.jobs.classification import job

SAME = ("updates", "compute")  # what is the same for all rules


def runs(scale: Scale) -> list[Run]:
    """With the same updates, and with the operations that these take with Sideways."""
    updates = scale.updates or 1000
    wanted = [
        {"study": "quickstart", "rule": rule, "updates": count, "seed": seed}
        for seed in range(scale.seeds)
        for same in SAME
        for rule in RULES
        for count in [_updates(rule, same, updates)]
    ]
    return [run for n, run in enumerate(wanted) if run not in wanted[:n]]


def _updates(rule: str, same: str, of_sideways: int) -> int:
    if same == "updates":
        return of_sideways
    return round(of_sideways * operations("sideways") / operations(rule))


@cache
def operations(rule: str) -> float:
    """Floating-point operations of an update, counted by the compiler; nothing is run."""
    prepared = job.prepare(_config(rule, 1000, 0), Path())
    train_state = jax.eval_shape(prepared.init)
    data = prepared.config.data
    batch = {
        "frames": jax.ShapeDtypeStruct(
            (data.batch_size, data.num_frames, data.size, data.size, 3), "uint8"
        ),
        "label": jax.ShapeDtypeStruct((data.batch_size,), "int32"),
    }
    analysis = jax.jit(prepared.train_step).lower(train_state, batch).cost_analysis() or {}
    return float(analysis["flops"])


def _config(rule: str, updates: int, seed: int) -> ConfigDict:
    """The quickstart's, its schedule stretched or shrunk to so many updates."""
    config = quickstart.get_config(f"rule={rule}")
    part = updates / config.train.num_steps
    config.optimizer.drop_epochs = tuple(part * epoch for epoch in config.optimizer.drop_epochs)
    config.optimizer.warmup_epochs = part * config.optimizer.warmup_epochs
    config.seed = seed
    return config


def measure(run: Run) -> dict[str, float]:
    """Trains as `experiments/main.py` does, and tests after the last update."""
    prepared = job.prepare(_config(run["rule"], run["updates"], run["seed"]), Path())
    train_step = jax.jit(prepared.train_step, donate_argnums=0)
    train_state = prepared.init()
    batches = prepared.open_batches()
    try:
        for batch in itertools.islice(batches, run["updates"]):
            batch = {name: batch[name] for name in ("frames", "label")}
            train_state, _ = train_step(train_state, prepared.put(batch))
    finally:
        batches.close()
    assert prepared.evaluate is not None  # The quickstart has test videos.
    tested = prepared.evaluate(train_state, prepared.test_batches(), last=False, folder=Path())
    return {
        "test accuracy": tested.metrics()["accuracy"],
        "operations of an update": operations(run["rule"]),
    }


def answer(rows: Sequence[Row]) -> list[str]:
    """Sideways against the others, at the same updates and at the same compute."""
    sentences, ours = [], where(rows, rule="sideways")
    for other in ("pipelined_backprop", "backprop"):
        theirs = where(rows, rule=other)
        for updates in sorted({row["updates"] for row in theirs}, reverse=True):
            one = difference(ours, where(theirs, updates=updates), "test accuracy")
            sentences.append(
                said(one, f"Test accuracy, Sideways - {NAMES[other]} with {updates} updates",
                     higher="Sideways is better", lower=f"{NAMES[other]} is better",
                     points=True)
            )  # fmt: skip
    return sentences


def picture(rows: Sequence[Row]) -> Figure:
    """A bar for every rule, at the same updates and at the same compute."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, same in zip(panels, SAME, strict=True):
        updates = max(row["updates"] for row in rows)
        some = [row for row in rows if row["updates"] == _updates(row["rule"], same, updates)]
        variants = [{name: row[name] for name in ("rule", "updates", "seed")} for row in some]
        summaries = by_seed(some, variants, STUDY.value)
        names = [
            f"{NAMES[one.run['rule']]}\n{one.run['updates']:,} updates".replace("d b", "d\nb")
            for one in summaries
        ]
        bars(axes, summaries, names)
        axes.set_title(f"the same {same}")
    panels[0].set(ylabel="test accuracy", ylim=(0, 1))
    figure.suptitle("Quickstart: moving digits, Simple-CNN")
    return figure


STUDY = Study(
    title="Quickstart: test accuracy",
    runs=runs,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    question="With the quickstart's data and all of Simple-CNN's channels: as good as backprop?",
    answer=answer,
    minutes=5,
)
