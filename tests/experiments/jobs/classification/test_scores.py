"""Scores of predictions, against counts by hand."""

import numpy as np
import pytest

from experiments.jobs.classification import scores

PROBABILITIES = np.array(
    [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [1.0, 0.0, 0.0]]
)
LABELS = np.array([0, 1, 1, 2, 0])


def test_one_class_to_a_video():
    assert scores.accuracy(PROBABILITIES, LABELS) == 4 / 5
    assert scores.top(PROBABILITIES, LABELS, 1) == 4 / 5
    assert scores.top(PROBABILITIES, LABELS, 2) == 1
    expected = -np.log([0.6, 0.7, 0.4, 0.4, 1.0]).mean()
    np.testing.assert_allclose(
        scores.negative_log_likelihood(PROBABILITIES, LABELS), expected, rtol=1e-12
    )
    assert scores.confusion(PROBABILITIES, LABELS).tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_a_network_that_knows_nothing_is_not_right_by_the_order_of_its_classes():
    same = np.full((4, 10), 0.1)
    assert scores.top(same, np.arange(4), 5) == 0


def test_calibration():
    # Bins of a fifth: 0.6 and 0.7 are together, and right; 0.5 and 0.4 as well, one of them right.
    error = scores.calibration_error(PROBABILITIES, LABELS, bins=5)
    np.testing.assert_allclose(error, (abs(1.3 - 2) + abs(0.9 - 1)) / 5)
    assert scores.calibration_error(np.eye(3), np.arange(3)) == 0  # Sure and right.
    assert scores.calibration_error(np.eye(3), (np.arange(3) + 1) % 3) == 1  # Sure and wrong.


def test_several_classes_to_a_video():
    labels = np.array([[True, False], [True, True], [False, False]])
    probabilities = np.array([[0.9, 0.2], [0.4, 0.7], [0.6, 0.1]])
    assert scores.accuracy(probabilities, labels) == 4 / 6
    expected = -np.log([0.9, 0.8, 0.4, 0.7, 0.4, 0.9]).mean()
    np.testing.assert_allclose(scores.negative_log_likelihood(probabilities, labels), expected)
    # Of the first class, the videos of it are first and third of three.
    np.testing.assert_allclose(
        scores.average_precisions(probabilities, labels), [(1 + 2 / 3) / 2, 1]
    )
    confidences = np.array([0.9, 0.8, 0.6, 0.7, 0.6, 0.9])
    right = np.array([1, 1, 0, 1, 0, 1])
    places = [4, 4, 3, 3, 3, 4]  # of five bins; 0.8 begins the last
    gaps = [abs((confidences - right)[np.array(places) == n].sum()) for n in range(5)]
    np.testing.assert_allclose(
        scores.calibration_error(probabilities, labels, bins=5), sum(gaps) / 6
    )


def test_a_class_without_videos_has_no_precision():
    labels = np.array([[True, False]])
    precisions = scores.average_precisions(np.array([[0.2, 0.9]]), labels)
    assert precisions[0] == 1 and np.isnan(precisions[1])


@pytest.mark.parametrize("count", [1, 7])
def test_negligible_probabilities_are_not_infinitely_bad(count):
    sure = np.tile([1.0, 0.0], (count, 1))
    assert np.isfinite(scores.negative_log_likelihood(sure, np.ones(count, int)))
