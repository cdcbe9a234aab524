"""Prints and draws clock tables: which module works on which frame at which step.

python experiments/draw_schedule.py --schedules=blocking,sideways --stages=5 --steps=12 --out=a.png

The pictures are those of the paper's Figures 2 and 3: time runs to the right, the network from the
bottom to the top. The upper left half of a square has the colour of the frame in the forward pass,
the lower right half that of the frame whose loss is back-propagated. Two colours in a square mean
that signals of different frames are combined; unless a module keeps past inputs, the strip below
the square, from the newest to the oldest: then it back-propagates through the oldest, which is of
the frame whose loss comes back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sideways_jax.rule import schedules
from sideways_jax.rule.schedules import ClockTable
from sideways_jax.tools.names import check_name

PIPELINES = ("sideways", "pipelined_backprop")  # one clock for both
NAMES = (*PIPELINES, *schedules.SCHEDULES)
TITLES = {
    "sideways": "Sideways: every module at every step, the newest of both",
    "pipelined_backprop": "Pipelined backprop: the same, exact by past inputs (the strips)",
    "blocking": "Backprop, blocking: one frame at a time, the others wait",
    "gpipe": "Backprop, GPipe: all frames forward, then all backward",
    "1f1b": "Backprop, 1F1B: both at once, inputs kept until they are needed",
}

_SCHEDULES = flags.DEFINE_list("schedules", ["blocking", *PIPELINES], f"of {', '.join(NAMES)}")
_STAGES = flags.DEFINE_integer("stages", 5, "modules, or devices", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 12, "computation steps that are shown", lower_bound=1)
_FRAMES = flags.DEFINE_integer("frames", None, "frames of the clip; default: steps", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "the PNG to write")


def make_table(name: str, num_frames: int, num_stages: int) -> ClockTable:
    """The clock table of a pipelined rule or of a schedule of backprop.

    Raises:
      ValueError: for an unknown name.
    """
    check_name("schedule", name, NAMES)
    if name in PIPELINES:
        return schedules.sideways(num_frames, num_stages)._replace(name=name)
    return schedules.make(name, num_frames, num_stages)


def first_steps(table: ClockTable, steps: int) -> ClockTable:
    """The beginning of a table."""
    return table._replace(forward=table.forward[:steps], backward=table.backward[:steps])


def kept_frames(table: ClockTable, t: int, n: int) -> list[int]:
    """The frames whose inputs module n still has at step t, the newest first; 0-based.

    >>> table = make_table("pipelined_backprop", 9, 3)
    >>> kept_frames(table, 6, 0), int(table.backward[6, 0])
    ([5, 4, 3, 2], 2)
    """
    if table.name != "pipelined_backprop":
        return []
    late = 2 * (table.num_stages - 1 - n)
    frames = [int(table.forward[t - m, n]) for m in range(1, late + 1) if t >= m]
    return [frame for frame in frames if frame >= 0]


def draw(tables: list[ClockTable], path: str | Path) -> None:
    """Draws tables below each other into a PNG."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = max(table.num_steps for table in tables)
    stages = max(table.num_stages for table in tables)
    frames = max(int(max(table.forward.max(), table.backward.max())) for table in tables) + 1
    figure, all_axes = plt.subplots(
        len(tables),
        figsize=(0.62 * steps + 1.6, len(tables) * (0.62 * stages + 1.1)),
        squeeze=False,
        layout="constrained",
    )
    for table, axes in zip(tables, all_axes[:, 0], strict=True):
        for t in range(table.num_steps):
            for n in range(table.num_stages):
                _draw_square(axes, table, t, n, frames)
        axes.set(xlim=(0, steps), ylim=(0, table.num_stages), aspect="equal")
        axes.set_xticks([t + 0.5 for t in range(table.num_steps)], range(1, table.num_steps + 1))
        axes.set_yticks(
            [n + 0.5 for n in range(table.num_stages)],
            [f"$H_{{{n + 1}}}$" for n in range(table.num_stages)],
        )
        axes.tick_params(length=0)
        axes.set_frame_on(False)
        axes.set_title(TITLES.get(table.name, table.name), fontsize=10, loc="left")
    all_axes[-1, 0].set_xlabel("computation step")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_square(axes: Axes, table: ClockTable, t: int, n: int, num_frames: int) -> None:
    """What module n does at step t."""
    strip = 0.2 if table.name == "pipelined_backprop" else 0.0  # the height of what is kept
    low, size = n + 0.04 + strip, 0.92 - strip
    for frame, corner in ((table.forward[t, n], (0, 1)), (table.backward[t, n], (1, 0))):
        x = t + 0.04
        triangle = [(x, low), (x + 0.92, low + size),
                    (x + 0.92 * corner[0], low + size * corner[1])]  # fmt: skip
        colour = _colour(frame, num_frames)
        axes.add_patch(Polygon(triangle, facecolor=colour, edgecolor="white"))
        if frame >= 0:
            where = (t + (0.3 if corner[1] else 0.7), low + size * (0.72 if corner[1] else 0.28))
            red, green, blue, _ = colour
            light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            axes.text(*where, frame + 1, ha="center", va="center", fontsize=8,
                      color="black" if light else "white")  # fmt: skip
    places = 2 * (table.num_stages - 1 - n) if strip else 0
    for k, frame in enumerate(kept_frames(table, t, n)):
        width = 0.92 / places
        corner = (t + 0.04 + k * width, n + 0.04)
        strip_part = Rectangle(corner, width, strip - 0.02, facecolor=_colour(frame, num_frames))
        strip_part.set(edgecolor="white", linewidth=0.5)
        axes.add_patch(strip_part)


def _colour(frame: int, num_frames: int) -> tuple[float, float, float, float]:
    """Of a frame; grey for none."""
    if frame < 0:
        return (0.93, 0.93, 0.93, 1.0)
    return mpl.colormaps["turbo"](0.08 + 0.84 * frame / max(num_frames - 1, 1))


def main(argv: list[str]) -> None:
    """Prints every table, and draws all into one picture."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: settings are given as --name=value")
    frames = _FRAMES.value or _STEPS.value
    tables = [
        first_steps(make_table(name, frames, _STAGES.value), _STEPS.value)
        for name in _SCHEDULES.value
    ]
    for table in tables:
        print(f"{table.name}: frame of the forward pass/frame of the backward pass")
        print(schedules.text(table), end="\n\n")
    if _OUT.value:
        draw(tables, _OUT.value)
        print(f"written: {_OUT.value}")


if __name__ == "__main__":
    app.run(main)
