"""The auto-encoder's stream (`experiments/table3.py`) by all rules, at growing speeds of motion.

Gradient descent with an update at every step; 2112 frames of four streams of `moving_solids` at
every stride. The error is that in the last quarter of the stream, against the frame of now.
Backprop blocks: it uses one frame of eleven.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.evidence.study import NAMES, RULES, Row, Run, Scale, Study
from experiments.evidence.summary import difference, lines_by_rule, said, where
from experiments.jobs.autoencoding import comparison

STRIDES = (1, 4, 12)
FRAMES = 2112
SHORTEST = 8 * comparison.CHUNK  # of a stream that is scored


def runs(scale: Scale) -> list[Run]:
    """All rules and strides with the first seed, then with the next."""
    updates = scale.updates or FRAMES
    return [
        {
            "study": "online",
            "stride": stride,
            "rule": rule,
            "frames": max(updates // SHORTEST, 1) * SHORTEST,
            "rate": 0.3,
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for stride in STRIDES
        for rule in RULES
    ]


def measure(run: Run) -> dict[str, float | None]:
    """Learns one stream; None for an error that is not finite."""
    settings = comparison.Settings(
        sources=(comparison.SOLIDS,), strides=STRIDES, seeds=1, milestones=(run["frames"],),
        search_frames=None, rates=(run["rate"],), optimizer="sgd", size=48, streams=4,
        widths=(16, 32, 32, 64, 128), normalise=False,
    )  # fmt: skip
    one = comparison.Run(comparison.SOLIDS, run["stride"], run["rule"], run["seed"], run["rate"])
    rows = comparison.run(settings, one, settings.milestones)
    by_protocol = {row["protocol"]: row["streaming_mse"] for row in rows}
    return {"error": by_protocol["in_stream"], "error, weights frozen": by_protocol["held_out"]}


def answer(rows: Sequence[Row]) -> list[str]:
    """Sideways against the others, at every stride."""
    sentences = []
    for stride in STRIDES:
        here = where(rows, stride=stride)
        for other in ("pipelined_backprop", "backprop"):
            one = difference(where(here, rule="sideways"), where(here, rule=other), "error")
            sentences.append(
                said(one, f"Stride {stride}: error in the stream, Sideways - {NAMES[other]}",
                     higher=f"{NAMES[other]} is better", lower="Sideways is better",
                     template="{:+.5f}")
            )  # fmt: skip
    return sentences


def picture(rows: Sequence[Row]) -> Figure:
    """The error against the stride, a line for every rule."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines_by_rule(axes, rows, "stride", STUDY.value, lambda x, shift: x * 1.03**shift)
    axes.set(
        xscale="log",
        xlabel="stride: every how many-th frame of the scene arrives",
        ylabel="mean squared error against the frame of now",
        title=f"Auto-encoder, a stream of {rows[0]['frames']:,} frames",
    )
    axes.set_xticks(STRIDES, [str(stride) for stride in STRIDES])
    axes.xaxis.set_minor_formatter("")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


STUDY = Study(
    title="Auto-encoder's stream: error against the frame of now",
    runs=runs,
    measure=measure,
    value="error",
    format="{:.5f}",
    picture=picture,
    question="On a stream that does not wait, how fast may things move?",
    answer=answer,
    minutes=5,
)
