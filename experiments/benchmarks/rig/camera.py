"""What a model shows of a camera that does not wait, and how good that is.

As in streaming perception, and as `jobs/autoencoding/score.py` does it for pictures: at every step
the newest output is compared with the frame of that step. Here the best possible answer for a frame
is the network's own, as if it took no time.
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

    agreement: float  # share of the steps at which the answer shown is that for the frame of now
    error: float  # mean square of logits less those of the frame of now, over their variance
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


def score(logits: np.ndarray, frames: np.ndarray, first: int) -> Score:
    """Scores what was shown from the step `first` on.

    Args:
      logits: of every frame, `[S, B, C]`.
      frames: which of them was shown at each step, as `shown` gives it.
      first: the same for all models that are compared, since pipelines begin later.

    Raises:
      ValueError: if nothing was shown yet at `first`.
    """
    now, frames = np.arange(first, len(frames)), frames[first:]
    if not len(frames) or frames[0] < 0:
        raise ValueError(
            f"nothing is shown yet at step {first} of {len(logits)}: give more frames, or a slower "
            "camera"
        )
    middle = logits.astype(np.float64) - logits.mean(axis=0, dtype=np.float64)
    answers = middle.argmax(axis=-1)
    error = np.square(middle[frames] - middle[now]).sum(axis=-1).mean()
    return Score(
        agreement=float((answers[frames] == answers[now]).mean()),
        error=float(error / np.square(middle).sum(axis=-1).mean()),
        lag=float((now - frames).mean()),
        used=len(set(frames)) / len(frames),
    )
