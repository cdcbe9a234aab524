"""When the frames of a video are shown, if not at a constant rate.

Phones, screen recorders and GIFs hold a frame for as long as nothing new comes. Every stride, and
every part of a video in seconds, is about time; so such a video is taken as one of a constant rate
that shows at every step what is on the screen then: a frame that is held comes several times, of
frames in quick succession some do not come. It has as many frames as the file, at the mean rate.
"""

from array import array
from collections.abc import Sequence

import numpy as np

_SAME = 1e-3  # seconds: as good as equal, as Matroska's time stamps are in milliseconds


def varying(stamps: Sequence[float | None]) -> array | None:
    """When each frame begins, in seconds from the first; None if the rate is as good as constant.

    It is if all time stamps are within half a frame of those of a constant rate. Where some are
    missing or go back they are guesses: None, too, frames are counted.

    >>> varying([1.0, 1.25, 1.5, 1.75]), varying([1.0, 1.25, 3.5, 3.75])
    (None, array('d', [0.0, 0.25, 2.5, 2.75]))
    """
    if len(stamps) < 3 or None in stamps:
        return None
    times = np.round(np.asarray(stamps, float) - stamps[0], 6)
    if not (np.diff(times) > 0).all():
        return None
    numbers = np.arange(len(times))
    interval, first = np.polyfit(numbers, times, 1)
    if np.abs(first + interval * numbers - times).max() < interval / 2:
        return None
    return array("d", times)


def rate(times: Sequence[float]) -> float:
    """Frames a second, the mean; the last frame is taken to be as long as that."""
    return (len(times) - 1) / times[-1]


def shown(times: Sequence[float] | None) -> array | None:
    """Which frame of the file every frame at the mean rate is: the one in the middle of its time.

    >>> shown((0.0, 0.25, 2.5, 2.75))
    array('i', [1, 1, 1, 3])
    """
    return None if times is None else array("i", _on_screen(np.asarray(times)))


def begun(times: Sequence[float], start: float, end: float) -> tuple[int, int]:
    """The first frame of the file that begins from `start` on, and the first from `end` on.

    >>> begun((0.0, 0.25, 2.5, 2.75), 0.2, 2.5)
    (1, 2)
    """
    first, stop = np.searchsorted(times, [start - _SAME, end - _SAME])
    return int(first), int(stop)


def _on_screen(times: np.ndarray) -> np.ndarray:
    middles = (np.arange(len(times)) + 0.5) / rate(times)
    return np.searchsorted(times, middles, side="right") - 1
