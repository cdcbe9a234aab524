"""What a model shows of a camera that does not wait, and how good that is.

As in streaming perception, and as `jobs/autoencoding/score.py` does it for pictures: at every step
the newest output is compared with the frame of that step. What is compared are answers for them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_ROUNDING = 1e-6  # of times, in frames of the camera


class Pace(NamedTuple):
    """How a model takes frames; times in any unit."""

    period: float  # from a frame that it takes to the next one
    busy: float  # from the start of the last of the steps of a frame to its output
    steps: int = 1  # of a frame, each of which begins with a frame that is taken: D in a pipeline


class Score(NamedTuple):
    """The result over a stream."""

    accuracy: float | None  # share of the steps at which the answer shown is right for now
    agreement: float  # ... at which it is that of the network for the frame of now
    error: float  # mean square of logits less those for the frame of now, over their variance
    lag: float  # mean, frames of the camera
    used: float  # share of the frames whose output was shown


def shown(num_frames: int, camera: float, pace: Pace) -> np.ndarray:
    """Which frame the newest output is of at the end of each step of the camera; -1 for none.

    Frame t arrives at the beginning of step t. The model takes the newest frame when it is ready,
    or else the next one when it arrives.

    Args:
      num_frames: S, of the stream.
      camera: time between two frames.
      pace: of the model, in the same unit.

    Returns:
      int `[S]`.

    >>> shown(6, 1.0, Pace(1.0, 1.0)).tolist()  # as fast as the camera
    [0, 1, 2, 3, 4, 5]
    >>> shown(6, 1.0, Pace(2.0, 2.0)).tolist()  # half as fast
    [-1, 0, 0, 2, 2, 4]
    >>> shown(6, 1.0, Pace(1.0, 1.0, steps=2)).tolist()  # a pipeline of D = 2
    [-1, 0, 1, 2, 3, 4]
    """
    period, busy = pace.period / camera, pace.busy / camera
    starts: list[float] = []
    taken: list[int] = []
    ready = 0.0
    while True:
        newest = int(ready + _ROUNDING)
        if taken and newest <= taken[-1]:  # It has that one already, and waits.
            newest = taken[-1] + 1
            ready = float(newest)
        if newest >= num_frames:
            break
        starts.append(ready)
        taken.append(newest)
        ready += period
    ends = np.array(starts[pace.steps - 1 :]) + busy
    last = np.searchsorted(ends, np.arange(1, num_frames + 1) + _ROUNDING, side="right") - 1
    return np.where(last >= 0, np.array(taken)[last], -1)


def score(
    logits: np.ndarray, answers: np.ndarray, labels: np.ndarray | None, frames: np.ndarray
) -> Score | None:
    """Scores what was shown, but for the first quarter of the stream, in which pipelines fill.

    Args:
      logits: of every frame, `[S, B, C]`.
      answers: of every frame, int `[S, B]`.
      labels: the right ones, if they are known.
      frames: which frame's were shown at each step, as `shown` gives it.

    Returns:
      The score; None if nothing was shown yet after a quarter.
    """
    first = len(frames) // 4
    now, frames = np.arange(first, len(frames)), frames[first:]
    if frames[0] < 0:
        return None
    wide = logits.astype(np.float64)
    error = np.square(wide[frames] - wide[now]).sum(axis=-1).mean()
    return Score(
        accuracy=None if labels is None else float((answers[frames] == labels[now]).mean()),
        agreement=float((answers[frames] == answers[now]).mean()),
        error=float(error / wide.var(axis=0).sum(axis=-1).mean()),
        lag=float((now - frames).mean()),
        used=len(set(frames.tolist())) / len(frames),
    )
