"""Watches a video, a camera or an address, and learns to paint it while it plays.

python experiments/live.py --source=FILE|CAMERA|ADDRESS --out=/tmp/live.mp4

An auto-encoder learns online, one frame a computation step, with Sideways; `--rule=backprop` for
blocking backprop on the same frames. The terminal shows frames per second, the lag of what is
painted, and its error against the frame of now (a running mean). The video that it writes has what
came on the left and what was painted meanwhile on the right. Ctrl-C ends it; what was seen so far
is kept.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # First of all: what comes meanwhile waits for `end_at_once`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from experiments.processes import interrupts

if __name__ == "__main__":
    interrupts.end_at_once("Stopped before the first frame.")

from pathlib import Path

from absl import app, flags

_SOURCE = flags.DEFINE_string(
    "source", None, "a video file, a camera (0, /dev/video0), or http, https, rtsp://..."
)
_OUT = flags.DEFINE_string("out", None, "the video that is written: .mp4, .mkv, .avi or .gif")
_RULE = flags.DEFINE_enum(
    "rule", "sideways", ["sideways", "pipelined_backprop", "backprop"], "how it learns"
)
_FRAMES = flags.DEFINE_integer(
    "frames", 0, "stop after so many; 0: at the end, or never", lower_bound=0
)
_REPEAT = flags.DEFINE_bool("repeat", False, "play a file over and over")
_SIZE = flags.DEFINE_integer("size", 64, "height and width, pixels, a multiple of 8")
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "sgd", ["sgd", "adam"], "gradient descent, or Adam with normalised activations"
)
_RATE = flags.DEFINE_float("learning_rate", None, "0.3 for sgd and 1e-3 for adam if not given")
_STRIDE = flags.DEFINE_integer("stride", 1, "take every n-th frame of the source", lower_bound=1)
_FPS = flags.DEFINE_integer("fps", 24, "frames a second of the new video", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the weights")


def main(argv: list[str]) -> int:
    """Watches until the end; what a user can get wrong ends in one line."""
    del argv
    from experiments.terminal.command_line import quiet

    quiet()
    from rich.console import Console

    from data import BadVideo
    from experiments.jobs.autoencoding import painting

    settings = painting.Settings(
        source=_SOURCE.value,
        out=Path(_OUT.value),
        rule=_RULE.value,
        frames=_FRAMES.value,
        repeat=_REPEAT.value,
        size=_SIZE.value,
        optimizer=_OPTIMIZER.value,
        learning_rate=_RATE.value,
        stride=_STRIDE.value,
        fps=_FPS.value,
        seed=_SEED.value,
    )
    console = Console()
    try:
        seen = painting.watch(settings, console)
    except (BadVideo, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    console.print(
        f"{settings.rule}: {seen.frames} frames, {seen.frames_per_second:.3g} frames/s, lag "
        f"{seen.lag:.1f}, error {seen.error:.4f}; written to {settings.out}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return 128 + seen.signal_number if seen.signal_number else 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "out"])
    app.run(main)
