"""The map: what the memory of pipelined backprop gives, where.

Two tasks of moving digits (which digit, which direction), three speeds of motion, three depths.
The deeper the network, the more frames lie between an activation and the cotangent that meets it,
2(D-1) at the bottom; the faster the motion, the more they differ. Clips have 2D+6 frames, so that
the lowest module gets 8 gradients from each, whatever D.

Synchronous backprop cannot learn the direction: there the two pipelines are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from data import default_config
from experiments.evidence.study import RULES, Row, Run, Scale, Study
from experiments.evidence.summary import difference, lines_by_rule, said, where
from experiments.evidence.training.classifier import trained_accuracy
from experiments.evidence.training.networks import convolutional

DEPTHS = (3, 6, 12)
SPEEDS = (0.5, 1.0, 2.0)  # pixels a frame
TASKS = {"digit": RULES, "direction": ("sideways", "pipelined_backprop")}
WIDTH = 24  # channels of every convolution


def runs(scale: Scale) -> list[Run]:
    """The whole map with the first seed, then with the next."""
    return [
        {
            "study": "map",
            "task": task,
            "depth": depth,
            "speed": speed,
            "rule": rule,
            "updates": scale.updates or 400,
            "rate": 2e-3,
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for task, rules in TASKS.items()
        for depth in DEPTHS
        for speed in SPEEDS
        for rule in rules
    ]


def measure(run: Run) -> dict[str, float]:
    """Trains and tests once."""
    depth, task = run["depth"], run["task"]
    config = default_config("moving_digits")
    config.task, config.speed = task, run["speed"]
    config.size, config.digit_size = 20, 8 if task == "direction" else 12
    config.num_frames = config.length = 2 * depth + 6
    config.batch_size = 16
    config.num_test = 60 if task == "direction" else 360
    # As in the direction task of five modules, the two above the lowest hear the frame.
    hearing = range(1, min(3, depth - 1)) if task == "direction" else ()
    network = convolutional(
        (WIDTH,) * (depth - 1), (2, 2, *(1,) * (depth - 3)), 8 if task == "direction" else 10,
        [(-1, i) for i in hearing],
    )  # fmt: skip
    accuracy = trained_accuracy(
        network, run["rule"], config, rate=run["rate"], seed=run["seed"], updates=run["updates"]
    )
    return {"test accuracy": accuracy}


def answer(rows: Sequence[Row]) -> list[str]:
    """What the memory of pipelined backprop gives, by task and depth."""
    sentences = []
    for task in TASKS:
        for depth in DEPTHS:
            here = where(rows, task=task, depth=depth)
            one = difference(
                where(here, rule="pipelined_backprop"), where(here, rule="sideways"),
                "test accuracy", ("seed", "speed"),
            )  # fmt: skip
            sentences.append(
                said(one, f"{task}, {depth} modules, all speeds: pipelined backprop - Sideways",
                     higher="wrong gradients cost accuracy", lower="Sideways is better",
                     points=True)
            )  # fmt: skip
    return sentences


def picture(rows: Sequence[Row]) -> Figure:
    """Accuracy against depth: a row for every task, a column for every speed."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(len(TASKS), len(SPEEDS), sharex=True, sharey="row", squeeze=False)
    for row_of_panels, task in zip(panels, TASKS, strict=True):
        for axes, speed in zip(row_of_panels, SPEEDS, strict=True):
            some = [row for row in rows if (row["task"], row["speed"]) == (task, speed)]
            _draw(axes, some, TASKS[task])
            axes.set_title(f"{speed:g} pixels a frame", fontsize=8)
        row_of_panels[0].set_ylabel(f"test accuracy, {task}")
    for axes in panels[-1]:
        axes.set_xlabel("modules D")
    panels[0, 0].legend(fontsize=8)
    return figure


def _draw(axes, rows: Sequence[Row], rules: Sequence[str]) -> None:
    lines_by_rule(axes, rows, "depth", STUDY.value, lambda x, shift: x * 1.02**shift, rules)
    axes.set(xscale="log", ylim=(0, 1))
    axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    axes.xaxis.set_minor_formatter("")


STUDY = Study(
    title="Depth and speed of motion: test accuracy",
    runs=runs,
    measure=measure,
    value="test accuracy",
    format="{:.1%}",
    picture=picture,
    question="Where does the memory of pipelined backprop close the gap to backprop?",
    answer=answer,
    minutes=2,
)
