"""Streams that a network watches in the suite `inference`, and what it says about a frame."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

CLIP = 16  # frames of a digit; then comes another one
LESSON = 800  # frames, each with another digit, from which the readout is learned
SPEED = 1 / 40  # of a digit, in sizes of the picture a frame
SMOOTHING = 0.3  # of the readout, of the mean variance; found on the digits of the stream


class Watched(NamedTuple):
    """A stream, and what there is to learn for it."""

    frames: np.ndarray  # uint8 [S, B, size, size, 3]
    labels: np.ndarray | None  # int [S, B]
    lesson: np.ndarray | None  # uint8 [T, B, size, size, 3], frames of other digits
    lesson_labels: np.ndarray | None  # int [T, B]


def digits(count: int, *, size: int, batch: int) -> Watched:
    """Moving digits (`data`): handwritten ones, one after the other, `CLIP` frames each."""
    # `data` takes a second to import, and decoders; the other suites do without.
    from data import default_config, load

    config = default_config("moving_digits")
    config.size, config.digit_size, config.speed = size, size // 2, size * SPEED
    config.num_frames = config.length = CLIP
    config.batch_size = batch
    clips = load(config, seed=0).test()
    shown = list(itertools.islice(clips, -(-count // CLIP)))
    frames = np.concatenate([clip["frames"].swapaxes(0, 1) for clip in shown])
    labels = np.concatenate([np.tile(clip["label"], (CLIP, 1)) for clip in shown])
    config.num_frames, config.batch_size = 1, LESSON // batch * batch
    lesson = next(iter(load(config, seed=0).train))
    parts = (lesson["frames"][:, 0], lesson["label"])
    rows = (part.reshape(-1, batch, *part.shape[1:]) for part in parts)
    return Watched(frames[:count], labels[:count], *rows)


def video(path: str, count: int, *, size: int, batch: int) -> Watched:
    """A file, over and over, or a camera; there are no labels.

    Raises:
      BadVideo: if it cannot be read.
    """
    from data import default_config, load_streams

    config = default_config("video_file")
    config.path, config.size, config.batch_size = path, size, batch
    frames = load_streams(config, seed=0, split="all")
    try:
        return Watched(np.stack([next(frames)["frames"] for _ in range(count)]), None, None, None)
    finally:
        frames.close()


def readout(logits: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Answers for other logits, by ridge regression on logits whose labels are known.

    The weights of a network may be random: then its logits are features, and this is its last
    layer. Logits are standardised first.

    Args:
      logits: `[..., C]`.
      labels: int `[...]`, 0 to 9.
      others: `[S, B, C]`.

    Returns:
      int `[S, B]`.
    """
    known = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    middle, spread = known.mean(axis=0), known.std(axis=0) + 1e-12
    known, asked = (known - middle) / spread, (others - middle) / spread
    products = known @ known.T
    ridge = SMOOTHING * np.trace(products) / len(known) * np.eye(len(known))
    weights = known.T @ np.linalg.solve(products + ridge, np.eye(10)[labels.ravel()] - 0.1)
    return (asked @ weights).argmax(axis=-1)
