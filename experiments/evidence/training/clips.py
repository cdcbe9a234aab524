"""Clips of moving digits, and which of them a run learns from and is tested on.

All rules of a seed see the same clips in the same order.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data import ClipOptions, Splits, Videos, default_config, load, make_source

Batch = dict[str, np.ndarray]  # "frames" uint8 [B, K, H, W, 3], "label" int32 [B] or [B, K]

HELD_OUT = 120  # training digits that a search of rates is judged by, and no run learns from then
SHOWN = 240  # videos at most, of training digits, whose accuracy is measured after training


class Clips(NamedTuple):
    """What a run takes."""

    train: Iterator[Batch]  # without end
    tests: Mapping[str, list[Batch]]  # by name; rows whose "label" is -1 fill a batch up


def digits(scale_smoke: bool = False, **fields: object) -> ConfigDict:
    """The data of the short studies: 300 digits to learn, 360 others to test, 28x28 pixels.

    Few digits, so that a network can overfit, and clutter by default, so that no rule reaches 100%.

    Args:
      scale_smoke: a few tiny clips.
      **fields: of `config.data`, in the place of these.
    """
    config = default_config("moving_digits")
    config.num_frames = config.length = 20  # K; VGG-8 needs 15 at least
    config.size, config.digit_size = 28, 20
    config.batch_size = 8  # the paper's
    config.speed, config.clutter = 1.0, 1
    config.num_train, config.num_test = 300, 360
    if scale_smoke:
        config.num_frames = config.length = 6
        config.size, config.digit_size, config.batch_size = 12, 8, 4
        config.num_train, config.num_test = 24, 20
    for name, value in fields.items():
        config[name] = value
    return config


def clips(config: ConfigDict, *, seed: int, search: bool = False) -> Clips:
    """Of moving digits: tests are "test", of other digits, and "train", of those it learns from.

    Args:
      config: of `digits`. Test videos are as long as a clip, at a stride of 1.
      seed: of the clips.
      search: the last training digits are tested on, in the place of the test digits, and not
        learned from: what chooses a rate has not seen what the rates are compared on.
    """
    config = ConfigDict(config.to_dict())
    config.length = max(config.length, config.stride * config.num_frames)
    learned = load(config, seed=seed).videos["train"]
    if search:
        learned = Part(learned, range(_learned_in_search(len(learned.labels))))
    none = Part(learned, range(0))
    splits = Splits(tuple(map(str, range(10))), learned, none)
    train = make_source(splits, ClipOptions.of(config), seed=seed).train
    return Clips(iter(train), _tests(json.dumps(config.to_dict(), sort_keys=True), seed, search))


def _learned_in_search(num_train: int) -> int:
    return num_train - min(HELD_OUT, num_train // 3)


@functools.lru_cache(maxsize=4)  # The rules of a seed are run one after the other.
def _tests(text: str, seed: int, search: bool) -> dict[str, list[Batch]]:
    """All test batches, of clips at a stride of 1."""
    config = ConfigDict(json.loads(text))
    config.stride, config.length = 1, config.num_frames
    source = load(config, seed=seed)
    train, test = source.videos["train"], source.videos["test"]
    num_train = len(train.labels)
    if search:
        kept = _learned_in_search(num_train)
        train, test = Part(train, range(kept)), Part(train, range(kept, num_train))
    shown = Part(train, range(min(SHOWN, len(train.labels))))
    options = ClipOptions.of(config)._replace(batch_size=40)
    return {
        name: list(make_source(Splits(source.classes, train, one), options, seed=seed).test())
        for name, one in (("test", test), ("train", shown))
    }


def shuffled(batches: Iterator[Batch], seed: int) -> Iterator[Batch]:
    """The same clips, the frames of each batch in an order of its own."""
    for number in itertools.count():
        batch = next(batches)
        order = np.random.default_rng([seed, number]).permutation(batch["frames"].shape[1])
        yield batch | {"frames": batch["frames"][:, order]}


class Part:
    """Some of other videos (`data.Videos`)."""

    def __init__(self, videos: Videos, chosen: range):
        self._videos, self._chosen = videos, chosen
        self.labels = [videos.labels[n] for n in chosen]
        self.num_frames = [videos.num_frames[n] for n in chosen]
        self.fingerprint = f"{videos.fingerprint} {chosen}"

    def frame_size(self, video: int) -> tuple[int, int]:
        """Of the other videos."""
        return self._videos.frame_size(self._chosen[video])

    def read(self, video: int, frames, box, rng) -> np.ndarray:
        """Of the other videos."""
        return self._videos.read(self._chosen[video], frames, box, rng)

    def stream(self, video: int, box) -> Iterator[np.ndarray]:
        """Of the other videos."""
        return self._videos.stream(self._chosen[video], box)
