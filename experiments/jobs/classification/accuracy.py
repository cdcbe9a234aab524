"""Accuracy over whole test videos: every frame counts, and a video gets one prediction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax import Network
from sideways_jax.tools.names import check_name

AVERAGES = ("logits", "probabilities")


class ShownClip(NamedTuple):
    """The beginning of a test video, for a picture."""

    frames: np.ndarray  # uint8 [n, H, W, 3], n <= K
    label: int
    probabilities: np.ndarray  # [classes], of the whole video


class Evaluation(NamedTuple):
    """The result over a test set."""

    accuracy: float  # fraction of the videos
    loss: float  # cross-entropy of the averaged prediction, mean over the videos
    videos: int
    frames: int  # how many were counted
    shown: list[ShownClip]

    def metrics(self) -> dict[str, float]:
        """The numbers, for the log."""
        return {name: value for name, value in self._asdict().items() if name != "shown"}


def make_evaluate(network: Network, average: str) -> Callable[..., Evaluation]:
    """Makes `evaluate(params, state, batches, num_videos, num_classes, shown=()) -> Evaluation`.

    The network sees frame after frame, synchronously (`Network.apply` with `train=False`), without
    the delay of a pipeline. The logits of all frames of a video are averaged, or with
    `average="probabilities"` their softmax; the prediction is the largest average.

    Args:
      network: its output is logits `[B, classes]`.
      average: "logits" or "probabilities".

    Raises:
      ValueError: for another `average`.
    """
    check_name("eval.average", average, AVERAGES)

    sum_over_frames = _make_sums(network, average)

    def evaluate(
        params,
        state,
        batches: Iterable,
        num_videos: int,
        num_classes: int,
        shown: Collection[int] = (),
    ) -> Evaluation:
        """Goes through `batches` of `Source.test` once.

        Args:
          params, state: of the network.
          batches: `{"frames", "label", "video", "mask"}` of `data.Source.test`.
          num_videos: the number of test videos.
          num_classes: the number of classes.
          shown: the videos whose first frames are returned.

        Raises:
          ValueError: if there are no videos, or some video got no frame.
        """
        tally = _Tally(num_videos, num_classes, shown)
        pending = None
        for batch in batches:
            sums = sum_over_frames(params, state, batch["frames"], batch["mask"])
            if pending is not None:  # The device works on this batch while the last is collected.
                tally.add(*pending)
            pending = sums, batch
        if pending is not None:
            tally.add(*pending)
        return tally.result(average)

    return evaluate


def _make_sums(network: Network, average: str) -> Callable:
    """A function that adds up the scores of real frames: `[B, classes]` of frames `[B, K, ...]`."""

    @jax.jit
    def sum_over_frames(params, state, frames, mask):
        def one_step(inputs):
            frame, is_real = inputs
            logits = network.apply(params, state, frame, train=False)[0].astype(jnp.float32)
            scores = jax.nn.softmax(logits) if average == "probabilities" else logits
            # `where`, not a product: scores of padding may be NaN.
            return jnp.where(is_real[:, None], scores, jnp.zeros_like(scores))

        # One step of the batch after the other: memory does not grow with the clip.
        by_step = jax.lax.map(one_step, (frames.swapaxes(0, 1), mask.T))
        return by_step.sum(axis=0)

    return sum_over_frames


class _Tally:
    """Sums of the scores and the number of frames so far, for every video."""

    def __init__(self, num_videos: int, num_classes: int, shown: Collection[int]):
        self._scores = np.zeros((num_videos, num_classes))
        self._labels = np.zeros(num_videos, np.int64)
        self._num_frames = np.zeros(num_videos, np.int64)
        self._shown, self._beginnings = shown, {}

    def add(self, sums: jax.Array, batch: dict[str, np.ndarray]) -> None:
        """Adds the scores of a batch, of the frames that are real."""
        sums = np.asarray(sums, np.float64)
        for row in np.flatnonzero(batch["mask"].any(axis=1)):
            video, mask = batch["video"][row], batch["mask"][row]
            self._scores[video] += sums[row]
            self._labels[video] = batch["label"][row]
            self._num_frames[video] += mask.sum()
            if video in self._shown and video not in self._beginnings:
                self._beginnings[video] = batch["frames"][row][mask]

    def result(self, average: str) -> Evaluation:
        """The accuracy and the loss; ValueError for a video without frames."""
        labels, num_frames = self._labels, self._num_frames
        if len(labels) == 0:
            raise ValueError("there are no test videos to evaluate on")
        missing = np.flatnonzero(num_frames == 0)
        if missing.size:
            raise ValueError(
                f"{missing.size} of {len(labels)} test videos had no frames, number {missing[0]} "
                "is the first"
            )
        probabilities = self._scores / num_frames[:, None]
        if average == "logits":
            probabilities = _softmax(probabilities)
        of_label = probabilities[np.arange(len(labels)), labels]
        return Evaluation(
            accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
            loss=float(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean()),
            videos=len(labels),
            frames=int(num_frames.sum()),
            shown=[
                ShownClip(self._beginnings[video], int(labels[video]), probabilities[video])
                for video in self._shown
            ],
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
