"""What is shown of a camera that does not wait, and its score."""

import numpy as np
import pytest

from experiments.benchmarks.rig import camera
from experiments.benchmarks.rig.camera import Pace


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        (Pace(0.3, 0.3), [0, 1, 2, 3, 4, 5, 6, 7]),  # Faster than the camera: it waits.
        # Taken at 0, 1.5, 3, 4.5, 6, 7.5: frames 0, 1, 3, 4, 6, 7.
        (Pace(1.5, 1.5), [-1, 0, 1, 1, 3, 4, 4, 6]),
        (Pace(3.0, 3.0), [-1, -1, 0, 0, 0, 3, 3, 3]),
        (Pace(0.3, 0.3, steps=3), [-1, -1, 0, 1, 2, 3, 4, 5]),  # A push is a frame of the camera.
        (Pace(1.0, 1.0, steps=3), [-1, -1, 0, 1, 2, 3, 4, 5]),
        (Pace(2.0, 2.0, steps=2), [-1, -1, -1, 0, 0, 2, 2, 4]),
        (Pace(1.0, 2.0), [-1, 0, 1, 2, 3, 4, 5, 6]),  # Two devices that take frames in turn.
        (Pace(9.0, 9.0), [-1] * 8),
    ],
)
def test_the_newest_output_at_each_step(pace, expected):
    for unit in (1.0, 0.04):
        in_units = Pace(pace.period * unit, pace.busy * unit, pace.steps)
        assert camera.shown(8, unit, in_units).tolist() == expected


def test_answers_are_compared_with_those_for_now():
    logits = np.array([0.0, 0, 0, 0, 1, 1, 5, 5])[:, None, None] * np.array([1.0, 2.0])
    answers = np.array([0, 0, 1, 1, 2, 2, 3, 3])[:, None]
    labels = np.array([0, 0, 0, 0, 2, 2, 2, 2])[:, None]
    now, late = np.arange(8), np.arange(8) - 1
    at_once = camera.score(logits, answers, labels, now)
    # From step 2 on: answers 1, 1, 2, 2, 3, 3.
    assert at_once == camera.Score(accuracy=2 / 6, agreement=1.0, error=0.0, lag=0.0, used=1.0)
    score = camera.score(logits, answers, labels, late)  # Answers 0, 1, 1, 2, 2, 3.
    assert score.accuracy == 3 / 6 and score.agreement == 3 / 6 and score.lag == 1
    # The squares of the jumps are 5 and 80, the variance is that of 0, 0, 0, 0, 1, 1, 5, 5.
    assert score.error == pytest.approx((1 + 16) / 6 / np.var(logits[:, 0, 0]))
    assert camera.score(logits, answers, None, late).accuracy is None
    assert camera.score(logits, answers, labels, now - 3) is None
    assert camera.score(logits, answers, labels, np.array([-1, 0, 0, 0, 0, 4, 4, 4])).used == 2 / 6
