"""Prints and draws clock tables: which module works on which frame at which step.

python experiments/draw_schedule.py --schedules=blocking,sideways --stages=5 --steps=12 --out=a.png

The pictures are those of the paper's Figures 2 and 3: time runs to the right, the network from the
bottom to the top. The upper left half of a square has the colour of the frame in the forward pass,
the lower right half that of the frame whose loss is back-propagated. Two colours in a square mean
that signals of different frames are combined.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sideways_jax.rule import schedules
from sideways_jax.rule.schedules import ClockTable
from sideways_jax.tools.names import check_name

NAMES = ("sideways", *schedules.SCHEDULES)
TITLES = {
    "sideways": "Sideways: every module at every step, the newest of both",
    "blocking": "Backprop, blocking: one frame at a time, the others wait",
    "gpipe": "Backprop, GPipe: all frames forward, then all backward",
    "1f1b": "Backprop, 1F1B: both at once, inputs kept until they are needed",
}

_SCHEDULES = flags.DEFINE_list("schedules", ["blocking", "sideways"], f"of {', '.join(NAMES)}")
_STAGES = flags.DEFINE_integer("stages", 5, "modules, or devices", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 12, "computation steps that are shown", lower_bound=1)
_FRAMES = flags.DEFINE_integer("frames", None, "frames of the clip; default: steps", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "the PNG to write")


def make_table(name: str, num_frames: int, num_stages: int) -> ClockTable:
    """The clock table of Sideways or of a schedule of backprop.

    Raises:
      ValueError: for an unknown name.
    """
    check_name("schedule", name, NAMES)
    if name == "sideways":
        return schedules.sideways(num_frames, num_stages)
    return schedules.make(name, num_frames, num_stages)


def first_steps(table: ClockTable, steps: int) -> ClockTable:
    """The beginning of a table."""
    return table._replace(forward=table.forward[:steps], backward=table.backward[:steps])


def draw(tables: list[ClockTable], path: str | Path) -> None:
    """Draws tables below each other into a PNG."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = max(table.num_steps for table in tables)
    stages = max(table.num_stages for table in tables)
    frames = max(int(max(table.forward.max(), table.backward.max())) for table in tables) + 1
    hue = mpl.colormaps["turbo"]
    figure, all_axes = plt.subplots(
        len(tables),
        figsize=(0.62 * steps + 1.6, len(tables) * (0.62 * stages + 1.1)),
        squeeze=False,
        layout="constrained",
    )
    for table, axes in zip(tables, all_axes[:, 0], strict=True):
        for t in range(table.num_steps):
            for n in range(table.num_stages):
                both = ((table.forward[t, n], (0, 1)), (table.backward[t, n], (1, 0)))
                for frame, corner in both:
                    x, y = t + 0.04, n + 0.04
                    triangle = [(x, y), (x + 0.92, y + 0.92),
                                (x + 0.92 * corner[0], y + 0.92 * corner[1])]  # fmt: skip
                    colour = hue(0.08 + 0.84 * frame / max(frames - 1, 1)) if frame >= 0 else "0.93"
                    axes.add_patch(plt.Polygon(triangle, facecolor=colour, edgecolor="white"))
                    if frame >= 0:
                        where = (t + (0.3 if corner[1] else 0.7), n + (0.7 if corner[1] else 0.3))
                        red, green, blue, _ = colour
                        light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
                        axes.text(*where, frame + 1, ha="center", va="center", fontsize=8,
                                  color="black" if light else "white")  # fmt: skip
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
