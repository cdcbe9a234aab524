"""Streaming evaluation, counted by hand on tiny streams."""

import numpy as np
import pytest

from experiments.jobs.autoencoding.score import StreamScore
from sideways_jax.one_device import blocking
from sideways_jax.stream import Outputs

BLACK, WHITE = 0, 255


def _frames(values, batch=1):
    """Frames of one pixel: uint8 [K, B, 1, 1, 3]."""
    column = np.asarray(values, np.uint8).reshape(-1, 1, 1, 1, 1)
    return np.tile(column, (1, batch, 1, 1, 3))


def _outputs(values, shown):
    shown = np.asarray(shown, np.int32).reshape(len(values), -1)
    column = np.asarray(values, np.float32).reshape(-1, 1, 1, 1, 1)
    return Outputs(np.tile(column, (1, shown.shape[1], 1, 1, 3)), shown)


@pytest.mark.parametrize("chunks", [(6,), (1, 5), (4, 2), (2, 2, 2)])
def test_errors_of_now_and_of_the_frame_itself(chunks):
    """Frames go black, white, black ...; outputs are perfect and one step late."""
    values = [BLACK, WHITE, BLACK, WHITE, WHITE, BLACK]
    late = [0.5, 0, 1, 0, 1, 1]  # The first is shown before there is anything, and does not count.
    shown = [-1, 0, 1, 2, 3, 4]
    score, start = StreamScore(), 0
    for length in chunks:
        part = slice(start, start + length)
        score.add(_outputs(late[part], shown[part]), _frames(values[part]))
        start += length
    result = score.result()
    assert result.streaming_mse == pytest.approx(4 / 5)  # wrong at all but the fifth step
    assert result.compensated_mse == pytest.approx(0, abs=1e-12)
    assert (result.mean_lag, result.max_lag) == (1, 1)
    assert (result.frames, result.frames_used, result.frames_dropped) == (6, 5, 0)


def test_missing_outputs_may_count_as_black():
    frames = _frames([WHITE, BLACK, WHITE])
    outputs = _outputs([0.3, 0.3, 1.0], [-1, -1, 0])
    assert StreamScore(count_missing=False).result() is None
    for count_missing, expected in ((False, 0.0), (True, 1 / 3)):
        score = StreamScore(count_missing=count_missing)
        score.add(outputs, frames)
        assert score.result().streaming_mse == pytest.approx(expected)


def test_a_stream_that_is_over_does_not_count():
    score = StreamScore(count_missing=True)
    frames = _frames([WHITE, WHITE], batch=2)
    outputs = _outputs([1.0, 1.0], [[0, 0], [1, 1]])
    score.add(outputs, frames, playing=np.array([[True, True], [True, False]]))
    result = score.result()
    assert (result.frames, result.frames_used) == (3, 3)


def test_what_blocking_uses_and_drops():
    """D = 3: of 20 frames 0, 5, 10, 15 are taken; each is shown from two steps later on."""
    clock = blocking.clock(3, 20)
    score = StreamScore()
    score.add(_outputs(np.zeros(20), clock.shown), _frames([BLACK] * 20))
    result = score.result()
    assert (result.frames_used, result.frames_dropped) == (4, 12)
    assert result.max_lag == 6
    lags = [t - n for t, n in enumerate(clock.shown) if n >= 0]
    assert result.mean_lag == pytest.approx(np.mean(lags))


def test_what_is_lost_before_a_restart_is_dropped():
    """D = 2 and restarts: frames 3 and 4 are never shown, although 5 is."""
    shown = [-1, 0, 1, 2, -1, -1, 5, 6]
    score = StreamScore()
    score.add(_outputs(np.zeros(8), shown), _frames([BLACK] * 8))
    result = score.result()
    assert (result.frames_used, result.frames_dropped) == (5, 2)


def test_scores_that_begin_in_the_middle():
    """Frames 8 to 15 arrive; outputs are perfect and two steps late; the last four count."""
    values = [BLACK, WHITE] * 8
    late, shown = [0, 0, *(np.array(values[:-2]) / WHITE)], [-1, -1, *range(14)]
    score = StreamScore(first_frame=8)
    for start, counts in ((8, False), (12, True)):
        part = slice(start, start + 4)
        score.add(_outputs(late[part], shown[part]), _frames(values[part]), np.full((4, 1), counts))
    result = score.result()
    assert result.frames == 4
    assert result.compensated_mse == pytest.approx(0, abs=1e-12)
    assert result.streaming_mse == pytest.approx(0, abs=1e-12)  # the same colour two steps ago


@pytest.mark.parametrize("lag", [3, 16, 17, 40])
@pytest.mark.parametrize("chunk", [1, 4, 120])
def test_any_lag(lag, chunk):
    """Outputs are perfect and late by any number of steps, of a source with random frames."""
    values = np.random.default_rng(0).integers(0, 256, 120, np.uint8)
    shown = np.maximum(np.arange(120) - lag, -1)
    late = np.where(shown >= 0, values[shown] / WHITE, 0)
    score = StreamScore()
    for start in range(0, 120, chunk):
        part = slice(start, start + chunk)
        score.add(_outputs(late[part], shown[part]), _frames(values[part]))
    result = score.result()
    assert (result.mean_lag, result.max_lag, result.frames_used) == (lag, lag, 120 - lag)
    assert result.compensated_mse == pytest.approx(0, abs=1e-12)
    error = np.square((values[lag:].astype(float) - values[:-lag]) / WHITE).mean()
    assert result.streaming_mse == pytest.approx(error)


def test_an_output_of_a_frame_that_is_given_up():
    score = StreamScore()
    shown = np.arange(40) - 2
    score.add(_outputs(np.zeros(40), shown), _frames([BLACK] * 40))
    with pytest.raises(ValueError, match="is of frame 3, and frames before 24 are given up"):
        score.add(_outputs([0.0], [3]), _frames([BLACK]))


def test_a_stream_that_is_over_keeps_no_frames():
    """One of two streams ends after ten steps; the other goes on, two steps late."""
    score = StreamScore()
    for start in range(0, 3000, 100):
        now = np.arange(start, start + 100)
        shown = np.stack([now - 2, np.where(now < 10, now - 2, -1)], 1)
        playing = np.stack([now >= 0, now < 10], 1)
        score.add(_outputs(np.zeros(100), shown), _frames([BLACK] * 100, 2), playing)
    assert len(score._past) <= 32
    assert (score.result().frames, score.result().max_lag) == (3010, 2)


def test_the_range_of_pixels():
    score = StreamScore((-1.0, 1.0))
    score.add(_outputs([0.0], [0]), _frames([WHITE]))
    assert score.result().streaming_mse == pytest.approx(0.25)
