"""Losses against sums by hand."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs.common import base_config
from experiments.jobs.classification.losses import balanced_weights, cross_entropy, make_loss

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], np.float32)


def source(labels=(0, 0, 0, 1, 2, 0), multi_label=False):
    videos = {"train": SimpleNamespace(labels=list(labels))}
    return SimpleNamespace(classes=["a", "b", "c"], videos=videos, multi_label=multi_label)


def loss(labels, of=None, **fields):
    options = ConfigDict(base_config().loss.to_dict() | fields)
    dtype = jnp.int32 if np.ndim(labels) == 1 else jnp.uint8
    made = make_loss(options, of or source(multi_label=np.ndim(labels) == 2))
    return float(made.loss_fn(jnp.asarray(LOGITS), jnp.asarray(labels, dtype)))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_nothing_asked_for_is_the_cross_entropy():
    assert make_loss(base_config().loss, source()).loss_fn is cross_entropy
    np.testing.assert_allclose(
        loss([0, 1]), -(log_softmax(LOGITS)[[0, 1], [0, 1]]).mean(), rtol=1e-6
    )


def test_smoothing_and_weights():
    targets = np.array([[0.9, 0, 0], [0, 0.9, 0]]) + 0.1 / 3
    each = -(targets * log_softmax(LOGITS)).sum(axis=1)
    np.testing.assert_allclose(loss([0, 1], label_smoothing=0.1), each.mean(), rtol=1e-6)
    weighed = loss([0, 1], label_smoothing=0.1, class_weights=(2.0, 0.5, 0.0))
    np.testing.assert_allclose(weighed, (2 * each[0] + 0.5 * each[1]) / 2, rtol=1e-6)


def test_balanced_classes_count_alike():
    weights = balanced_weights(source())
    np.testing.assert_allclose(weights, [6 / 12, 6 / 3, 6 / 3])
    assert np.bincount([0, 0, 0, 1, 2, 0]) @ weights == 6  # Their mean over all videos is 1.
    assert loss([0, 1], balanced=True) == pytest.approx(
        loss([0, 1], class_weights=tuple(map(float, weights)))
    )
    with pytest.raises(ValueError, match="the class b has no training video"):
        balanced_weights(source([0, 2]))


def test_several_classes_to_a_video():
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    targets = labels * 0.8 + 0.1
    each = np.log1p(np.exp(LOGITS)) - targets * LOGITS
    np.testing.assert_allclose(loss(labels, label_smoothing=0.2), each.mean(), rtol=1e-6)
    weights = (1.0, 2.0, 0.0)
    np.testing.assert_allclose(
        loss(labels, label_smoothing=0.2, class_weights=weights), (each * weights).mean(), rtol=1e-6
    )
    several = source([(0, 1), (), (0, 2), (0,)], multi_label=True)
    np.testing.assert_allclose(balanced_weights(several), [4 / 9, 4 / 3, 4 / 3])
    accuracy = make_loss(base_config().loss, several).accuracy
    assert float(accuracy(jnp.asarray(LOGITS), jnp.asarray(labels, jnp.uint8))) == pytest.approx(
        1 / 6  # Of logits above 0 the first alone is right, ...
        + 1 / 6  # ... and of the others the second of the first video.
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0 must be at least 0 and below 1"),
        ({"class_weights": (1.0,)}, "a number of at least 0 for each of the 3 classes"),
        ({"class_weights": (1.0, 1.0, 1.0), "balanced": True}, "give one of them"),
    ],
)
def test_values_out_of_range(fields, said):
    with pytest.raises(ValueError, match=said):
        loss([0, 1], **fields)
