"""Clips of real videos: each file is a class of its own, so that no labels are needed."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator

import numpy as np

from data import BadVideo, default_config, load_streams, video_files
from experiments.evidence.training.clips import Batch

MOST_FRAMES = 600  # of a file that are decoded
MOST_FILES = 10  # the classes that the networks of `recipes` have


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
