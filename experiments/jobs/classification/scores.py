"""How good predictions are, from the probabilities of all videos.

Labels are int `[V]`, or with several classes to a video, bool `[V, C]`; probabilities `[V, C]`.
With several classes to a video, every pair of a video and a class counts as one prediction, of yes
or no.
"""

from __future__ import annotations

import numpy as np

BINS = 15  # of confidence, in the calibration error

_TINY = np.finfo(np.float64).tiny


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of right predictions."""
    return float(outcomes(probabilities, labels)[1].mean())


def top(probabilities: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The fraction of videos whose class is among the `count` most probable; labels `[V]`.

    >>> top(np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), np.array([1, 0]), 2)
    0.5
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    # What is as probable as the class comes before it: a network that knows nothing is not right.
    rank = (probabilities >= of_label[:, None]).sum(axis=1)
    return float((rank <= count).mean())


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `-log p` of what is true, in nats."""
    if labels.ndim == 2:
        likelihoods = np.where(labels, probabilities, 1 - probabilities)
    else:
        likelihoods = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(likelihoods, _TINY)).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error: how far confidence is from accuracy, 0 to 1.

    Predictions are put into bins by their confidence, the probability of what is predicted, all of
    the same width; the error is the mean of |accuracy - mean confidence|, weighted by how many
    predictions a bin has (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    >>> calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
    0.4
    """
    confidences, right = outcomes(probabilities, labels)
    places = np.minimum((confidences * bins).astype(int), bins - 1)
    surplus = np.bincount(places, confidences - right, minlength=bins)
    return float(np.abs(surplus).sum() / len(confidences))


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many videos of each class (rows) were taken for which (columns): int `[C, C]`.

    Args:
      probabilities: `[V, C]`.
      labels: `[V]`.
    """
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def average_precisions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The average precision of each class, `[C]`; NaN for a class that no video has.

    The area below the curve of precision over recall: the mean, over the videos of the class, of
    the fraction of right ones among those that are at least as probable.

    >>> average_precisions(np.array([[0.9], [0.8], [0.1]]), np.array([[True], [False], [True]]))
    array([0.83333333])
    """
    result = np.full(labels.shape[1], np.nan)
    for n, (scores, true) in enumerate(zip(probabilities.T, labels.T, strict=True)):
        if true.any():
            at_least = scores >= scores[true][:, None]  # [videos of the class, V]
            result[n] = ((at_least & true).sum(axis=1) / at_least.sum(axis=1)).mean()
    return result


def outcomes(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The confidence of every prediction, and whether it is right."""
    if labels.ndim == 2:
        confidences = np.maximum(probabilities, 1 - probabilities)
        return confidences.ravel(), ((probabilities > 0.5) == labels).ravel()
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
