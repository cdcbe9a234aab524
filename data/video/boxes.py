"""Rectangles of a frame."""

from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop(frames: np.ndarray, box: Box) -> np.ndarray:
    """The part `box` of every one of `frames` [..., H, W, C]: a view."""
    return frames[..., box.top : box.top + box.height, box.left : box.left + box.width, :]
