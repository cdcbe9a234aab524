"""The picture as the camera takes it: its rays, and which of them pass near something."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.drawing.lights import KEY, light
from data.drawing.vectors import Vector

EYE = np.array([0.0, -11.4, 8.1])
_LOOKS_AT = np.array([0.0, 0.0, 0.75])
_FOCAL_LENGTH = 2.85  # without zoom, of half the width of the picture
_KEY_SIZE = 1.5  # the width of the lamp KEY
SPREAD = 2  # so many pixels in a row see spots of their own


class View(NamedTuple):
    """What does not change from frame to frame; R samples, `samples` x `samples` a pixel."""

    size: int  # height and width, pixels
    samples: int
    focal_length: float  # of half the width of the picture
    ray: Vector  # [R] unit vectors from the eye
    floor: Vector  # [R] where they meet the floor
    lamp: Vector  # [R] the spot of the lamp that a sample sees
    lamps: np.ndarray  # float64 [4, 3], the outermost of these spots
    to_camera: np.ndarray  # float64 [3, 3]: right, up and forward
    floor_middle: Vector  # [P] the floor at the centres of the pixels
    floor_key: np.ndarray  # [P], light from the lamp there
    floor_ambient: np.ndarray  # [P], all other light there


@functools.lru_cache(maxsize=8)
def view(size: int, samples: int = 2, zoom: float = 1.0) -> View:
    """The picture of `size` x `size` pixels with `samples` x `samples` rays a pixel.

    With a zoom of 2 it shows the middle quarter, twice as large.
    """
    focal_length = zoom * _FOCAL_LENGTH
    forward = _LOOKS_AT - EYE
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right = right / np.linalg.norm(right)
    to_camera = np.stack([right, np.cross(right, forward), forward])

    def rays(width: int) -> tuple[Vector, Vector]:
        at = (np.arange(width) + 0.5) / width * 2 - 1
        up, across = np.meshgrid(-at, at, indexing="ij")
        ray = np.stack([across.ravel(), up.ravel(), np.full(width**2, focal_length)], -1)
        ray = ray @ to_camera
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        floor = EYE - ray * (EYE[2] / ray[:, 2:])
        return tuple(ray.T.astype(np.float32)), tuple(floor.T.astype(np.float32))

    width = size * samples
    ray, floor = rays(width)
    across = np.cross(KEY, [0, 0, 1])
    across = across / np.linalg.norm(across)
    num_spots = samples * SPREAD
    spots = ((np.arange(num_spots) + 0.5) / num_spots - 0.5) * _KEY_SIZE
    along = np.cross(across, KEY / np.linalg.norm(KEY))
    lamps = np.array([KEY + across * u + along * v for u in spots for v in spots])
    # Samples that are side by side see spots far apart: 0, 2, 1, 3 for two pixels of two samples.
    order = np.arange(num_spots).reshape(SPREAD, samples).T.ravel()
    row, column = np.divmod(np.arange(width**2), width)
    spot = order[row % num_spots] * num_spots + order[column % num_spots]
    lamp = tuple(lamps[spot].T.astype(np.float32))
    lamps = lamps[[0, num_spots - 1, -num_spots, -1]]
    middle = rays(size)[1]
    zero = np.zeros(size**2, np.float32)
    key, _, ambient = light(middle, (zero, zero, zero + 1))
    return View(
        size, samples, focal_length, ray, floor, lamp, lamps, to_camera, middle, key, ambient
    )  # fmt: skip


def boxes_around(scenery: View, corners: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rectangles of samples around points [F, any, 3]: [F, 4], top, bottom, left, right."""
    boxes = []
    width = scenery.size * scenery.samples
    for points in corners:
        seen = (points - EYE) @ scenery.to_camera.T
        at = scenery.focal_length * seen[..., :2] / seen[..., 2:]
        across = (at[..., 0] + 1) * (width / 2) - 0.5
        down = (1 - at[..., 1]) * (width / 2) - 0.5
        edges = [
            np.ceil(down.min(1)), np.floor(down.max(1)) + 1,
            np.ceil(across.min(1)), np.floor(across.max(1)) + 1,
        ]  # fmt: skip
        boxes.append(np.clip(np.stack(edges, -1), 0, width).astype(np.int64))
    return boxes


def samples_inside(boxes: np.ndarray, scenery: View) -> tuple[np.ndarray, np.ndarray]:
    """All samples within the box of their frame: frames and rays, one entry for each."""
    width = scenery.size * scenery.samples
    top, bottom, left, right = boxes.T
    rows = np.maximum(bottom - top, 0)
    columns = np.maximum(right - left, 0)
    # First every row of every box, then every sample of every row.
    frame = np.repeat(np.arange(len(boxes)), rows)
    row = top[frame] + _count_up(rows)
    length = columns[frame]
    start = row * width + left[frame]
    return np.repeat(frame, length), np.repeat(start, length) + _count_up(length)


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of the lengths.

    >>> _count_up(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)


def pixels_of(scenery: View, samples: np.ndarray) -> np.ndarray:
    """The pixels of F * P that some samples of F * R belong to."""
    n = scenery.samples
    if n == 1:
        return samples
    row, column = np.divmod(samples, scenery.size * n)  # rows of all frames
    return row // n * scenery.size + column // n
