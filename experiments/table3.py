"""Table 3 of the paper: online auto-encoding with Sideways and with blocking backprop.

python experiments/table3.py --sources=moving_solids,FILE,... --seeds=3 --json=/tmp/table3.json

Both rules see the same frames in the same order and start from the same parameters; the learning
rate of each is searched among `--rates`, on the first seed, by the error in the stream after
`--search_frames` (an asterisk says that it lies at the edge of what was searched). Two protocols:
"in_stream", scored while it learns, over the last quarter of the frames; and "held_out", on test
streams with the weights frozen, Sideways as pipelined inference and backprop blocking. A third kind
of row, "copying", has no network: it is the error of repeating the input with the delay that each
rule has on the test streams. It is not a bound: Sideways learns to predict over that delay.
"still_falling" is the error of the last eighth of the stream over that of the one before.

Several `--frames` are milestones of one stream: at each both protocols are scored, so that rows,
and the picture beside FILE, say how the errors fall as frames arrive. "of half" is the error of
backprop, and that of Sideways, over those after half as many frames: about 1 where the curves are
flat.
Sources are moving_solids or video files (their last quarter is held out). `--strides` makes things
move faster. Rows that are in the JSON file already are not computed again.
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
    interrupts.end_at_once(
        "Stopped. The rows so far are in the file; run the same command again to go on."
    )

from pathlib import Path

from absl import app, flags

_SOURCES = flags.DEFINE_list("sources", ["moving_solids"], "moving_solids, or video files")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many", lower_bound=1)
_FRAMES = flags.DEFINE_list(
    "frames", ["8448"], "that arrive in each training stream by each milestone; multiples of 528"
)
_SEARCH_FRAMES = flags.DEFINE_integer(
    "search_frames", None, "the milestone at which rates are compared; the last one if not given"
)
_STRIDES = flags.DEFINE_list("strides", ["1"], "every how many-th frame of the source arrives")
_OPTIMIZER = flags.DEFINE_enum("optimizer", "sgd", ["sgd", "momentum", "adam"], "of both rules")
_RATES = flags.DEFINE_list("rates", ["0.1", "0.3", "1"], "learning rates to choose from")
_SIZE = flags.DEFINE_integer("size", 48, "height and width, pixels")
_STREAMS = flags.DEFINE_integer("streams", 4, "of moving_solids at once; a file is one stream")
_WIDTHS = flags.DEFINE_list("widths", ["16", "32", "32", "64", "128"], "of the encoder")
_NORMALISE = flags.DEFINE_bool("normalise", False, "the blocks of the encoder, for both rules")
_JSON = flags.DEFINE_string("json", None, "where the rows go", required=True)
_PICTURE = flags.DEFINE_string("picture", None, "where the rows of frames go (Figures 7 and 8)")


def main(argv: list[str]) -> int:
    """Runs what is missing, prints the table; a bad source ends in one line."""
    del argv
    from experiments.jobs.autoencoding import comparison, report
    from experiments.terminal import command_line

    command_line.quiet()
    from data import BadVideo

    try:
        settings = comparison.Settings(
            sources=tuple(_SOURCES.value),
            strides=tuple(map(int, _STRIDES.value)),
            seeds=_SEEDS.value,
            milestones=tuple(sorted({int(number) for number in _FRAMES.value})),
            search_frames=_SEARCH_FRAMES.value,
            rates=tuple(map(float, _RATES.value)),
            optimizer=_OPTIMIZER.value,
            size=_SIZE.value,
            streams=_STREAMS.value,
            widths=tuple(map(int, _WIDTHS.value)),
            normalise=_NORMALISE.value,
        )
        comparison.check(settings)
        for file in filter(None, (_JSON.value, _PICTURE.value)):
            Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
        rows = comparison.compare(settings, Path(_JSON.value))
        comparison.print_table(settings, rows, command_line.console())
        curves = Path(_JSON.value).with_suffix(".png")
        report.draw_milestones(rows).savefig(curves)
        if _PICTURE.value:
            comparison.draw(settings, rows).savefig(_PICTURE.value)
    except (BadVideo, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
