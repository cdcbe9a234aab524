"""Looks at a data set before a network does.

python experiments/data_check.py --config=experiments/configs/hmdb51.py --sheet=/tmp/hmdb51.png \
    --config.data.path=DATA

Prints how many videos and frames every class has for training and testing, how fast training
clips come, and which files are bad; draws training clips, as the network gets them, with their
labels. The first, the middle and the last frame of every video are decoded, with --every_frame all
of them. The status is 1 if any of them cannot be decoded, or a file was left out as bad.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# Run from a checkout: `experiments` and `data` are packages of the repository, not installed ones.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path.cwd()))  # For data of the user's own.

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:ARGUMENT=VALUE,...")
_SHEET = flags.DEFINE_string("sheet", "data_check.png", "The picture of training clips.")
_EVERY_FRAME = flags.DEFINE_bool("every_frame", False, "Decode every frame of every video.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "For how long training clips are timed.")

SHOWN_CLIPS, SHOWN_FRAMES = 8, 8


class Count(NamedTuple):
    """How much there is of a class."""

    name: str
    train_videos: int
    train_frames: int
    test_videos: int
    test_frames: int


def counts(source) -> list[Count]:
    """Videos and frames of every class, for training and testing."""
    from data import classes_of

    totals = [[0, 0, 0, 0] for _ in source.classes]
    for column, part in enumerate(("train", "test")):
        videos = source.videos[part]
        for label, num_frames in zip(videos.labels, videos.num_frames, strict=True):
            for number in classes_of(label):
                totals[number][2 * column] += 1
                totals[number][2 * column + 1] += num_frames
    return [Count(name, *total) for name, total in zip(source.classes, totals, strict=True)]


def bad_videos(source, *, every_frame: bool, progress=None) -> Iterator[tuple[str, str]]:
    """Which videos cannot be decoded, and why."""
    import numpy as np

    from data import Box

    for part, videos in source.videos.items():
        for number, num_frames in enumerate(videos.num_frames):
            box = Box(0, 0, *videos.frame_size(number))
            name = f"{part} {videos.names[number] if hasattr(videos, 'names') else number}"
            try:
                if every_frame:
                    found = sum(1 for _ in videos.stream(number, box))
                    if found != num_frames:
                        yield name, f"{found} frames, not {num_frames}"
                else:
                    some = np.unique([0, num_frames // 2, num_frames - 1])
                    videos.read(number, some, box, np.random.default_rng(0))
            # Any error: a video that cannot be decoded is what this looks for.
            except Exception as error:
                yield name, str(error)
            if progress:
                progress()


def clips_per_second(batches, seconds: float) -> float:
    """How fast training clips come, after the first two batches."""
    next(batches), next(batches)
    start, num_clips = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not num_clips:
        num_clips += len(next(batches)["label"])
    return num_clips / (time.perf_counter() - start)


def contact_sheet(clips: Sequence, labels: Sequence, classes: Sequence[str]):
    """Draws a row for every clip `uint8 [K, H, W, 3]`: some of its frames, and its classes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from experiments.terminal.names import draw_plainly

    columns = min(SHOWN_FRAMES, len(clips[0]))
    figure = Figure(figsize=(1.3 * columns + 2.4, 1.3 * len(clips)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(clips), columns, squeeze=False)
    for row, clip, label in zip(grid, clips, labels, strict=True):
        chosen = np.linspace(0, len(clip) - 1, columns).astype(int)
        for axes, frame in zip(row, chosen, strict=True):
            axes.imshow(clip[frame], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if axes in grid[0]:
                axes.set_title(f"frame {frame}", fontsize=8)
        numbers = [label] if np.ndim(label) == 0 else np.flatnonzero(label)
        names = "\n".join(classes[number] for number in numbers)
        draw_plainly(
            row[0].set_ylabel(names, rotation="horizontal", ha="right", va="center", fontsize=9)
        )
    return figure


class Settings(NamedTuple):
    """What is looked at, and how long."""

    sheet: str  # the picture of training clips
    every_frame: bool  # decode every frame of every video
    seconds: float  # for how long training clips are timed


def main(argv: list[str]) -> int:
    """Runs the checks; what a user can get wrong ends in one line."""
    del argv
    settings = Settings(_SHEET.value, _EVERY_FRAME.value, _SECONDS.value)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return _check(_CONFIG.value, settings, Path(scratch))
        except (ValueError, OSError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1


def _check(config, settings: Settings, scratch: Path) -> int:
    from rich.console import Console
    from rich.progress import track

    from data import load
    from experiments.examples.archives import with_examples
    from experiments.running.stopping import hidden_from_children

    console = Console()
    config = with_examples(config, scratch)
    source = load(config.data, seed=config.seed)
    _print_counts(console, config.data.name, counts(source))
    has_workers = config.data.num_workers > 0
    hidden = hidden_from_children() if has_workers else contextlib.nullcontext()
    with contextlib.closing(iter(source.train)) as batches, hidden:
        _draw_clips(batches, source.classes, settings.sheet)
        speed = clips_per_second(batches, settings.seconds)
    data = config.data
    console.print(
        f"{speed:.1f} clips/s of {data.num_frames} frames, {data.size}x{data.size} pixels, with "
        f"{data.num_workers} workers; clips are drawn in {settings.sheet}",
        markup=False,
        soft_wrap=True,
    )
    progress = track(
        range(source.num_train + source.num_test),
        "decoding",
        console=Console(stderr=True),
        transient=True,
    )
    bar = iter(progress)
    every_frame = settings.every_frame
    bad = list(bad_videos(source, every_frame=every_frame, progress=lambda: next(bar, None)))
    next(bar, None)
    for kind, files in (("left out as bad", source.skipped), ("bad among the others", bad)):
        console.print(f"{kind}: {len(files)}", markup=False)
        for name, reason in files:
            console.print(f"  {name}: {reason}", markup=False, soft_wrap=True)
    return int(bool(bad or source.skipped))


def _print_counts(console, name: str, rows: list[Count]) -> None:
    from rich.table import Table
    from rich.text import Text

    from experiments.terminal.names import printable

    table = Table(title=f"{name}: {len(rows)} classes")
    for column in ("class", "train videos", "frames", "test videos", "frames"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        table.add_row(Text(printable(row.name)), *map(str, row[1:]))
    table.add_section()
    table.add_row("all", *(str(sum(row[column] for row in rows)) for column in range(1, 5)))
    console.print(table)
    empty = [row.name for row in rows if not row.train_videos]
    if empty:
        console.print(f"no training video: {', '.join(empty)}", markup=False)


def _draw_clips(batches, classes: Sequence[str], sheet: str) -> None:
    shown = {"frames": [], "label": []}
    for batch in itertools.islice(batches, SHOWN_CLIPS):
        for name, values in shown.items():
            values.extend(batch[name])
        if len(shown["label"]) >= SHOWN_CLIPS:
            break
    figure = contact_sheet(shown["frames"][:SHOWN_CLIPS], shown["label"][:SHOWN_CLIPS], classes)
    figure.savefig(sheet)


def _parse_flags(argv: list[str]) -> list[str]:
    from experiments.configs._descriptions import describe
    from experiments.terminal.command_line import parse_flags

    return parse_flags(argv, describe)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=_parse_flags)
