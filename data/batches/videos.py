"""What batches are made of: the videos that a data set has, and the options of its clips."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import ml_collections
import numpy as np

from data.batches.labels import Label
from data.video import boxes

Batch = dict[str, np.ndarray]


class Videos(Protocol):
    """A set of videos, numbered from 0. Worker processes get a pickled copy.

    Attributes:
      labels: the class of every video, an index into the classes of the data set; with
        `Splits.multi_label` its classes, any number of them.
      num_frames: the number of frames of every video, each at least 1.
      fingerprint: a short string that changes when the videos change; it goes into checkpoints.
    """

    labels: Sequence[Label]
    num_frames: Sequence[int]
    fingerprint: str

    def frame_size(self, video: int) -> tuple[int, int]:
        """Height and width of the frames of a video, in pixels, before the crop."""

    def read(
        self, video: int, frames: np.ndarray, box: boxes.Box, rng: np.random.Generator
    ) -> np.ndarray:
        """The part `box` of some frames of a training video.

        Args:
          video: which one.
          frames: [K] frame numbers, any order, repetitions allowed.
          box: the part of each frame that is wanted.
          rng: for what a data set draws anew for every clip; files have no use for it.

        Returns:
          uint8 [K, box.height, box.width, 3].
        """

    def stream(self, video: int, box: boxes.Box) -> Iterator[np.ndarray]:
        """Yields the part `box` of every frame of a test video: uint8 [height, width, 3]."""


class Splits(NamedTuple):
    """What a data set of clips has: its classes, the videos to train on, and those to test."""

    classes: Sequence[str]  # their names, in the order of the labels
    train: Videos
    test: Videos
    skipped: Sequence[tuple[str, str]] = ()  # bad files that were left out, `(path, reason)` each
    multi_label: bool = False  # whether a video may have several classes, or none


class ClipOptions(NamedTuple):
    """How clips and batches are made: the fields of `config.data` with the same names."""

    num_frames: int  # K, frames of a clip
    size: int  # height and width of a clip, pixels
    stride: int  # 1 takes every frame
    flip: bool  # mirror half of the training clips
    batch_size: int  # clips of a batch, over all processes
    num_workers: int  # processes that make training batches; 0 makes them in this one
    scale: tuple[float, float] = (1.0, 1.0)  # crops are that many times as large, then resized
    colour: float = 0.0  # how far brightness, contrast and saturation change, 0 to 1

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "ClipOptions":
        """The options that the configuration of a data set of clips has."""
        return cls(**{name: config[name] for name in cls._fields})
