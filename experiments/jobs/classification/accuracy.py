"""Accuracy over whole test videos: every frame counts, and a video gets one prediction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments.jobs.classification import scores
from sideways_jax import Network
from sideways_jax.tools.names import check_name

AVERAGES = ("logits", "probabilities")


class ShownClip(NamedTuple):
    """The beginning of a test video, for a picture."""

    frames: np.ndarray  # uint8 [n, H, W, 3], n <= K
    label: np.ndarray  # int []; bool [classes] if a video has several classes
    probabilities: np.ndarray  # [classes], of the whole video


class Evaluation(NamedTuple):
    """The result over a test set of V videos and C classes."""

    probabilities: np.ndarray  # [V, C], of whole videos
    labels: np.ndarray  # int [V]; bool [V, C] if a video has several classes
    frames: int  # how many were counted
    shown: list[ShownClip]

    @property
    def videos(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The fraction of right predictions."""
        return scores.accuracy(self.probabilities, self.labels)

    @property
    def loss(self) -> float:
        """The negative log-likelihood of whole videos, in nats."""
        return scores.negative_log_likelihood(self.probabilities, self.labels)

    def metrics(self) -> dict[str, float]:
        """The numbers, for the log.

        "loss" is the NLL, "ece" the expected calibration error, "top5" is there with more than 5
        classes, and "mean_average_precision" with several classes to a video.
        """
        both = self.probabilities, self.labels
        metrics = {"accuracy": self.accuracy, "loss": self.loss}
        metrics["ece"] = scores.calibration_error(*both)
        if self.labels.ndim == 2:
            precisions = scores.average_precisions(*both)
            known = precisions[~np.isnan(precisions)]
            metrics["mean_average_precision"] = float(known.mean()) if known.size else 0.0
        elif self.probabilities.shape[1] > 5:
            metrics["top5"] = scores.top(*both, 5)
        return metrics | {"videos": self.videos, "frames": self.frames}

    def score(self) -> float:
        """The accuracy, or the mean average precision with several classes to a video."""
        metrics = self.metrics()
        return metrics.get("mean_average_precision", metrics["accuracy"])


def make_evaluate(
    network: Network, average: str, *, multi_label: bool = False
) -> Callable[..., Evaluation]:
    """Makes `evaluate(params, state, batches, num_videos, num_classes, shown=()) -> Evaluation`.

    The network sees frame after frame, synchronously (`Network.apply` with `train=False`), without
    the delay of a pipeline. The logits of all frames of a video are averaged, or with
    `average="probabilities"` their softmax; the prediction is the largest average.

    Args:
      network: its output is logits `[B, classes]`.
      average: "logits" or "probabilities".
      multi_label: whether a video may have several classes, whose probabilities are sigmoids then;
        labels are uint8 `[B, classes]`.

    Raises:
      ValueError: for another `average`.
    """
    check_name("eval.average", average, AVERAGES)

    sum_over_frames = make_sums(network, average, multi_label=multi_label)

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
        tally = _Tally(num_videos, num_classes, shown, multi_label)
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


def make_sums(network: Network, average: str, *, multi_label: bool) -> Callable:
    """A function that adds up the scores of real frames: `[B, classes]` of frames `[B, K, ...]`.

    It takes `(params, state, frames, mask)`; the scores are logits, or with
    `average="probabilities"` their softmax.
    """

    to_probabilities = jax.nn.sigmoid if multi_label else jax.nn.softmax

    @jax.jit
    def sum_over_frames(params, state, frames, mask):
        def one_step(inputs):
            frame, is_real = inputs
            logits = network.apply(params, state, frame, train=False)[0].astype(jnp.float32)
            scores = to_probabilities(logits) if average == "probabilities" else logits
            # `where`, not a product: scores of padding may be NaN.
            return jnp.where(is_real[:, None], scores, jnp.zeros_like(scores))

        # One step of the batch after the other: memory does not grow with the clip.
        by_step = jax.lax.map(one_step, (frames.swapaxes(0, 1), mask.T))
        return by_step.sum(axis=0)

    return sum_over_frames


class _Tally:
    """Sums of the scores and the number of frames so far, for every video."""

    def __init__(
        self, num_videos: int, num_classes: int, shown: Collection[int], multi_label: bool
    ):
        self._scores = np.zeros((num_videos, num_classes))
        self._multi_label = multi_label
        self._labels = np.zeros(*((num_videos, num_classes), bool) if multi_label
                                else (num_videos, np.int64))  # fmt: skip
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
        probabilities = averaged(
            self._scores, num_frames, average, multi_label=self._multi_label
        )  # fmt: skip
        return Evaluation(
            probabilities=probabilities,
            labels=labels,
            frames=int(num_frames.sum()),
            shown=[
                ShownClip(self._beginnings[video], labels[video], probabilities[video])
                for video in self._shown
            ],
        )


def averaged(
    sums: np.ndarray, num_frames: np.ndarray, average: str, *, multi_label: bool
) -> np.ndarray:
    """The probabilities of videos `[V, C]`, from the sums over their frames."""
    means = sums / num_frames[:, None]
    if average == "probabilities":
        return means
    return special.expit(means) if multi_label else special.softmax(means, axis=1)
