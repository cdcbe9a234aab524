"""Clips of real videos, without labels: a class is a file, or a part of a file."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator

import numpy as np

from data import BadVideo, default_config, load_streams, video_files
from experiments.evidence.training.clips import Batch, Clips

MOST_FRAMES = 600  # of a file that are decoded
MOST_FILES = 10  # the classes that the networks of `recipes` have
PARTS = 3  # of a file, one after the other
LEARNED = 0.6  # of a part; clips of the frames after these are for tests


@functools.lru_cache(maxsize=2)
def videos(folder: str, size: int) -> dict[str, np.ndarray]:
    """The first frames of every file that can be read, uint8 `[n, size, size, 3]`, by name.

    Args:
      folder: with video files at any depth; empty for none.
      size: of the frames, pixels.
    """
    found: dict[str, np.ndarray] = {}
    if not folder:
        return found
    for file in sorted(video_files(folder)):
        config = default_config("video_file")
        config.path, config.size, config.repeat = os.fspath(file), size, False
        with contextlib.suppress(BadVideo, ValueError):
            streams = load_streams(config, seed=0, split="all")
            try:
                frames = [step["frames"][0] for step in itertools.islice(streams, MOST_FRAMES)]
            finally:
                streams.close()
            found[os.path.basename(file)] = np.stack(frames)
        if len(found) == MOST_FILES:
            break
    return found


def at_least_two(folder: str, size: int) -> dict[str, np.ndarray]:
    """As `videos`.

    Raises:
      ValueError: for a folder without two videos that can be read.
    """
    found = videos(folder, size)
    if len(found) < 2:
        raise ValueError(
            f"--videos={folder} has {len(found)} videos that can be read; give a folder with at "
            "least 2"
        )
    return found


def batches(
    shown: dict[str, np.ndarray], *, frames: int, stride: int, batch: int, seed: int
) -> Iterator[Batch]:
    """Random clips; a file that is too short starts again from its first frame."""
    files = list(shown.values())
    for number in itertools.count():
        rng = np.random.default_rng([seed, 3, number])
        label = rng.integers(len(files), size=batch).astype(np.int32)
        made = []
        for n in label:
            start = rng.integers(max(1, len(files[n]) - frames * stride))
            made.append(files[n][(start + stride * np.arange(frames)) % len(files[n])])
        yield {"frames": np.stack(made), "label": label}


def clips_of_parts(
    folder: str, *, size: int, frames: int, batch: int, seed: int, stride: int = 1
) -> Clips:
    """Which part of which video? The network learns from the first frames of each part.

    A third of a file is a class, so that scenes are alike and no network is always right. Tests
    are clips of later frames, which do not depend on the seed; one that is too short starts again
    from its first frame.

    Args:
      folder: with at least two videos that can be read; three files are used.
      size: of the frames, pixels.
      frames, batch, stride: of the clips that are learned from.
      seed: of these.

    Raises:
      ValueError: for a folder without two videos that can be read.
    """
    long = [
        (name, one) for name, one in at_least_two(folder, size).items() if len(one) >= 2 * PARTS
    ]
    parts = {
        f"{name}, {n}": part
        for name, shown in long[: MOST_FILES // PARTS]
        for n, part in enumerate(np.array_split(shown, PARTS))
    }
    learned = {name: part[: round(LEARNED * len(part))] for name, part in parts.items()}
    later = {name: part[len(learned[name]) :] for name, part in parts.items()}
    tests = {"test": _all_clips(later, frames), "train": _all_clips(learned, frames)}
    train = batches(learned, frames=frames, stride=stride, batch=batch, seed=seed)
    return Clips(train, tests)


def _all_clips(parts: dict[str, np.ndarray], frames: int, batch: int = 40) -> list[Batch]:
    """Every second clip, in batches of one size, so that one program takes them all."""
    made, label = [], []
    for number, part in enumerate(parts.values()):
        for start in range(0, max(1, len(part) - frames + 1), 2):
            made.append(part[(start + np.arange(frames)) % len(part)])
            label.append(number)
    missing = -len(label) % batch
    made += [np.zeros_like(made[0])] * missing
    label += [-1] * missing
    return [
        {"frames": np.stack(made[n : n + batch]), "label": np.array(label[n : n + batch], np.int32)}
        for n in range(0, len(label), batch)
    ]
