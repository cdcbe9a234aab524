"""The loss of `config.loss`, that a classifier learns with: one class to a video, or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from data import Source, classes_of


class Loss(NamedTuple):
    """Of one computation step: logits `[B, C]`, and labels int32 `[B]` or uint8 `[B, C]`."""

    loss_fn: Callable[[jax.Array, jax.Array], jax.Array]
    accuracy: Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of one computation step: logits `[B, classes]`, label int32 `[B]`, mean over B."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The fraction of a batch whose largest logit is that of the label."""
    return jnp.mean((logits.argmax(axis=-1) == label).astype(jnp.float32))


ONE_CLASS = Loss(cross_entropy, accuracy)  # nothing smoothed, nothing weighed


def several_accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The fraction of pairs of a video and a class that are right; labels uint8 `[B, C]`."""
    return jnp.mean(((logits > 0) == (labels > 0)).astype(jnp.float32))


def make_loss(options: ConfigDict, source: Source) -> Loss:
    """The loss of `config.loss`: a cross-entropy, the mean over the batch.

    With one class to a video, and a smoothing s, the label is 1 - s for the class and s / C for
    every class in addition, and an example counts as much as the weight of its class. The weights
    are not divided by their sum over the batch: that would weigh examples by what else is there.
    With several, it is the mean over the classes of a sigmoid's cross-entropy each, with labels
    from s / 2 to 1 - s / 2.

    Args:
      options: "label_smoothing", "class_weights", "balanced".
      source: for its classes and training videos.

    Raises:
      ValueError: for a value that is out of range.
    """
    smoothing = options.label_smoothing
    if not 0 <= smoothing < 1:
        raise ValueError(f"loss.label_smoothing={smoothing} must be at least 0 and below 1")
    weights = _weights(options, source)
    if source.multi_label:
        return Loss(_several(smoothing, weights), several_accuracy)
    if not smoothing and weights is None:
        return ONE_CLASS
    return Loss(_one(smoothing, weights), accuracy)


def balanced_weights(source: Source) -> np.ndarray:
    """Weights `[C]` by which all classes count alike: N / (C n) of a class in n of N videos.

    Raises:
      ValueError: if a class has no training video.
    """
    labels = source.videos["train"].labels
    classes = [number for label in labels for number in classes_of(label)]
    counts = np.bincount(classes, minlength=len(source.classes))
    if not counts.all():
        raise ValueError(
            f"loss.balanced=True: the class {source.classes[int(counts.argmin())]} has no training "
            "video; set loss.class_weights instead"
        )
    return (len(labels) / (len(counts) * counts)).astype(np.float32)


def _weights(options: ConfigDict, source: Source) -> np.ndarray | None:
    given, num_classes = tuple(options.class_weights), len(source.classes)
    if options.balanced:
        if given:
            raise ValueError("loss.class_weights and loss.balanced=True: give one of them")
        return balanced_weights(source)
    if not given:
        return None
    if len(given) != num_classes or min(given) < 0 or not any(given):
        raise ValueError(
            f"loss.class_weights={given}: give a number of at least 0 for each of the "
            f"{num_classes} classes, not all of them 0"
        )
    return np.array(given, np.float32)


def _one(smoothing: float, weights: np.ndarray | None) -> Callable:
    def loss_fn(logits: jax.Array, label: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, smoothing))
        return (losses if weights is None else losses * jnp.asarray(weights)[label]).mean()

    return loss_fn


def _several(smoothing: float, weights: np.ndarray | None) -> Callable:
    def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
        targets = labels.astype(logits.dtype) * (1 - smoothing) + smoothing / 2
        losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        return (losses if weights is None else losses * jnp.asarray(weights)[None]).mean()

    return loss_fn
