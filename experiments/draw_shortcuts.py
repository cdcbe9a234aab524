"""Draws what shortcuts bring: the frames in a pipeline at one step, and what a receiver sees.

python experiments/draw_shortcuts.py --modules=5 --receivers=4 --out=a.png

On the left the modules of a network at step t, the lowest below, each with the frame of its main
path, and what its shortcut from the frame (an arc) brings. On the right digits of the direction
task: the newest frame, the frame of the main path, and both over each other as a receiver hears
them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import FancyArrowPatch, Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_MODULES = flags.DEFINE_integer("modules", 5, "of the network", lower_bound=2)
_RECEIVERS = flags.DEFINE_list("receivers", ["4"], "modules (from 0) that hear the frame")
_OUT = flags.DEFINE_string("out", None, "the PNG to write", required=True)

COLOURS = ("tab:blue", "tab:orange")  # of the main path, and of what is newer


def time(late: int) -> str:
    """The name of a frame.

    >>> time(0), time(2)
    ('t', 't-2')
    """
    return f"t-{late}" if late else "t"


def draw(modules: int, receivers: list[int], path: str | Path) -> None:
    """Draws the picture into a PNG.

    Raises:
      ValueError: for a receiver that is not 1 to D-1.
    """
    for receiver in receivers:
        if not 1 <= receiver < modules:
            raise ValueError(
                f"--receivers={receiver} must be from 1 to {modules - 1}, the last module"
            )
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    _draw_network(left.subplots(), modules, receivers)
    _draw_frames(right, max(receivers))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_network(axes: Axes, modules: int, receivers: list[int]) -> None:
    for i in range(modules):
        axes.add_patch(Rectangle((0, i), 1.5, 0.62, facecolor="0.93", edgecolor="0.3"))
        axes.text(0.08, i + 0.31, f"module {i}", va="center", fontsize=9)
        axes.text(1.42, i + 0.31, time(i), va="center", ha="right", color=COLOURS[0], fontsize=10)
        start = i - 0.38 if i else -0.62
        arrow = FancyArrowPatch((0.75, start), (0.75, i), arrowstyle="-|>", mutation_scale=11,
                                color=COLOURS[0])  # fmt: skip
        axes.add_patch(arrow)
        late = 2 * (modules - 1 - i)
        axes.text(-0.12, i + 0.31, f"gradient of frame {time(i + late)}", va="center", ha="right",
                  fontsize=8, color="0.35")  # fmt: skip
    axes.text(0.75, -0.66, "frame t", ha="center", va="top", fontsize=10)
    for n, receiver in enumerate(receivers):
        arrow = FancyArrowPatch(
            (1.0, -0.72), (1.5, receiver + 0.31), arrowstyle="-|>", mutation_scale=12, lw=1.6,
            color=COLOURS[1], connectionstyle=f"arc3,rad={0.45 + 0.1 * n}",
        )  # fmt: skip
        axes.add_patch(arrow)
        axes.text(1.6, receiver + 0.4, f"also hears {time(0)},\n{receiver} frames newer",
                  color=COLOURS[1], fontsize=9, va="bottom")  # fmt: skip
    axes.set(xlim=(-1.5, 3.0), ylim=(-1.0, modules + 0.1))
    axes.set_title("A pipeline at step t, with shortcuts from the frame", fontsize=10)
    axes.axis("off")


def _draw_frames(figure: SubFigure, late: int) -> None:
    """Three digits: the older frame, the newest, and both."""
    from data import load
    from experiments.evidence.studies.direction import digits

    config = digits(1.0)
    config.num_test = 3
    batch = next(iter(load(config, seed=1).test()))
    panels = figure.subplots(3, 3)
    titles = (f"main path: {time(late)}", "shortcut: t", "what it hears")
    for n, (row, video) in enumerate(zip(panels, batch["frames"][:3], strict=True)):
        old, new = (video[at, ..., 0].astype(float) / 255 for at in (late, 2 * late))
        pictures = (_tinted(old, 0), _tinted(new, 1), np.maximum(_tinted(old, 0), _tinted(new, 1)))
        for axes, image, title in zip(row, pictures, titles, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=(), yticks=())
            if not n:
                axes.set_title(title, fontsize=9)


def _tinted(image: np.ndarray, which: int) -> np.ndarray:
    """`[H, W, 3]` in the colour of a path, from `[H, W]`."""
    return image[..., None] * np.array(mpl.colors.to_rgb(COLOURS[which]))


def main(argv: list[str]) -> None:
    """Draws."""
    del argv
    try:
        draw(_MODULES.value, [int(one) for one in _RECEIVERS.value], _OUT.value)
    except ValueError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    app.run(main)
