"""Pictures that become clips: handwritten digits that stand still, are panned, zoomed or blended.

The 1797 digits of scikit-learn, as in `moving_digits`. A clip of K frames:

* "still": one picture, K times;
* "pan": it glides by a pixel a frame; "zoom": it grows or shrinks by 2% a frame;
* "blend": pictures of one class; each fades into the next within five frames;
* "shuffled": K pictures of one class, another one in every frame;
* "mixed": K pictures of any classes, and a label for every frame.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from experiments.evidence.training.clips import Batch, Clips

KINDS = ("still", "pan", "zoom", "blend", "shuffled", "mixed")
_FADE = 5  # frames from one picture to the next
_PIXELS = 8  # height and width of the pictures


class Size(NamedTuple):
    """Of clips and batches."""

    frames: int = 20
    pixels: int = 28
    batch: int = 8
    num_train: int = 300
    num_test: int = 360


SMOKE = Size(frames=6, pixels=12, batch=4, num_train=24, num_test=20)


def clips(kind: str, size: Size, *, seed: int) -> Clips:
    """Training clips of one kind; tests are "test", other pictures that stand still."""
    images, labels = _pictures()
    learned = images[: size.num_train], labels[: size.num_train]
    tested = images[-size.num_test :], labels[-size.num_test :]
    rng = np.random.default_rng([seed, 1])
    frames = np.stack([_drawn(image, *_place(rng), size.pixels) for image in tested[0]])
    test = {"frames": _frames(frames[:, None]), "label": tested[1]}
    return Clips(_batches(kind, learned, size, seed), {"test": [test]})


def _batches(
    kind: str, pictures: tuple[np.ndarray, np.ndarray], size: Size, seed: int
) -> Iterator[Batch]:
    for number in itertools.count():
        rng = np.random.default_rng([seed, 2, number])
        made = [_clip(kind, pictures, size, rng) for _ in range(size.batch)]
        yield {
            "frames": _frames(np.stack([frames for frames, _ in made])),
            "label": np.stack([label for _, label in made]),
        }


def _clip(
    kind: str, pictures: tuple[np.ndarray, np.ndarray], size: Size, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frames `[K, H, W]` from 0 to 1, and the label `[]`, or `[K]` if "mixed"."""
    images, labels = pictures
    first = int(rng.integers(len(labels)))
    steps = np.arange(size.frames)
    alike = np.flatnonzero(labels == labels[first])
    if kind == "mixed":
        chosen = rng.integers(len(labels), size=size.frames)
    elif kind == "shuffled":
        chosen = rng.choice(alike, size.frames)
    elif kind == "blend":
        chosen = rng.choice(alike, 2 + size.frames // _FADE)
    else:
        chosen = np.array([first])
    shift, scale = _place(rng)
    if kind == "blend":
        keys = [_drawn(images[n], shift, scale, size.pixels) for n in chosen]
        place, part = steps // _FADE, (steps % _FADE / _FADE)[:, None, None]
        keys = np.stack(keys)
        return (1 - part) * keys[place] + part * keys[place + 1], labels[first]
    if kind in ("shuffled", "mixed"):
        frames = [_drawn(images[n], *_place(rng), size.pixels) for n in chosen]
        return np.stack(frames), labels[chosen] if kind == "mixed" else labels[first]
    angle = rng.uniform(0, 2 * np.pi)
    velocity = np.array([np.cos(angle), np.sin(angle)]) * (kind == "pan")
    growth = rng.choice([0.98, 1.02]) if kind == "zoom" else 1.0
    middle = steps - size.frames / 2
    return np.stack(
        [
            _drawn(images[first], shift + velocity * t, scale * growth**t, size.pixels)
            for t in middle
        ]
    ), labels[first]


def _place(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Where a picture is: a shift in pixels of a canvas of 28, and a scale."""
    return rng.uniform(-3, 3, size=2), float(rng.uniform(0.8, 1.1))


def _drawn(image: np.ndarray, shift: np.ndarray, scale: float, pixels: int) -> np.ndarray:
    """The picture in the middle of a canvas, `[pixels, pixels]`; two thirds of it at scale 1."""
    factor = scale * pixels * 0.7 / _PIXELS
    offset = (pixels - factor * _PIXELS) / 2 + factor / 2 - 0.5 + shift * pixels / 28
    matrix = np.array([[factor, 0, offset[0]], [0, factor, offset[1]]])
    return cv2.warpAffine(image, matrix, (pixels, pixels), flags=cv2.INTER_LINEAR)


def _frames(grey: np.ndarray) -> np.ndarray:
    """uint8 `[..., H, W, 3]` of `[..., H, W]`."""
    return np.repeat(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None], 3, axis=-1)


@functools.cache
def _pictures() -> tuple[np.ndarray, np.ndarray]:
    """float32 [1797, 8, 8] from 0 to 1, and int32 [1797], in one order for all seeds."""
    from sklearn import datasets  # A second to import.

    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.images[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)
