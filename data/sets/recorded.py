"""UCF101, HMDB51 and CATER, as their TFDS builders stored them.

    python experiments/build_data.py ucf101 --manual_dir=DOWNLOADS --data_dir=DIR     once
    config.data.path = DIR

A record of ArrayRecord is one video with a JPEG for each frame. A clip reads its record and decodes
its own frames, which takes as long wherever in the video it is; an AVI has to be decoded from its
start. How many frames a video has, how large they are and which split it is in comes from the
metadata, so loading reads no video.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np
from absl import logging
from array_record.python import array_record_data_source

from data.batches.labels import Label
from data.batches.videos import Splits
from data.building.stored import Build, read_build, shard_files
from data.sets.protocol import clip_config
from data.video import boxes


class RecordedDataSet(NamedTuple):
    """A data set that was built (`protocol.ClipSet`)."""

    name: str
    variant: str  # the builder's configuration
    split: str  # the default
    size: int  # the default, of the crop, pixels
    needs_labels: bool  # whether every video has one class

    def default_config(self) -> ml_collections.ConfigDict:
        """The fields of `config.data` for this data set, with their defaults."""
        config = clip_config(self.name, size=self.size)
        config.path = ""  # the --data_dir of the build; empty: ~/tensorflow_datasets
        config.variant = self.variant  # the configuration of the builder
        config.split = self.split  # the official split; for CATER the task
        if not self.needs_labels:
            # False gives frames alone, for auto-encoding: one class, "video". True gives the
            # classes of the task, of which every video has to have exactly one.
            config.labels = False
            config.multi_label = False  # with labels: a video may have any number of classes
        return config

    def splits(self, config: ml_collections.ConfigDict, *, seed: int) -> Splits:
        """The official split that `config` names.

        Raises:
          FileNotFoundError: if it has not been built.
          ValueError: if there is no such split, or a video does not have exactly one label.
        """
        del seed
        build = read_build(self.name, config.path, config.variant)
        split = _split(build, self.name, str(config.split))
        with_labels = self.needs_labels or config.labels
        multi_label = bool(with_labels and config.get("multi_label", False))
        if build.excluded:
            logging.warning(
                "%d videos were excluded when %s was built: %s",
                len(build.excluded),
                build.folder,
                ", ".join(f"{key} ({reason})" for key, reason in build.excluded),
            )
        train, test = (
            RecordVideos(
                build,
                [number for number, _ in split[part]],
                _labels(build, self.name, str(config.split), part, multi_label)
                if with_labels
                else None,
            )
            for part in ("train", "test")
        )
        classes = split["classes"] if with_labels else ("video",)
        return Splits(classes, train, test, build.excluded, multi_label)


UCF101 = RecordedDataSet("ucf101", "side_128", "1", size=112, needs_labels=True)
HMDB51 = RecordedDataSet("hmdb51", "side_128", "1", size=112, needs_labels=True)
CATER = RecordedDataSet(
    "cater", "all_actions", "actions_present", size=240, needs_labels=False
)  # fmt: skip


class RecordVideos:
    """Videos of a build (`data.Videos`). Only the frames that are asked for are decoded."""

    def __init__(self, build: Build, numbers: Sequence[int], labels: Sequence[Label] | None):
        entries = [build.videos[number] for number in numbers]
        self.labels = list(labels) if labels is not None else [0] * len(entries)
        self.num_frames = [entry.num_frames for entry in entries]
        what = [(*entry, label) for entry, label in zip(entries, self.labels, strict=True)]
        # Not the folder, so that it may move.
        self.fingerprint = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        self.names = [entry.key for entry in entries]
        self._folder = build.folder
        self._numbers = tuple(numbers)
        self._sizes = [(entry.height, entry.width) for entry in entries]
        self._records = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_records": None}  # every process opens the files anew

    def frame_size(self, index: int) -> tuple[int, int]:
        """Height and width as stored."""
        return self._sizes[index]

    def read(
        self, index: int, frames: np.ndarray, box: boxes.Box, rng: np.random.Generator
    ) -> np.ndarray:
        """Some frames of a video: uint8 [K, H, W, 3]."""
        del rng
        jpegs = self._jpegs(index)
        clip = np.empty((len(frames), box.height, box.width, 3), np.uint8)
        # A torus-padded clip has frames more than once: they are decoded once.
        first: dict[int, int] = {}
        for place, frame in enumerate(frames.tolist()):
            if frame in first:
                clip[place] = clip[first[frame]]
            else:
                first[frame] = place
                clip[place] = boxes.crop(self._decode(index, jpegs, frame), box)
        return clip

    def stream(self, index: int, box: boxes.Box) -> Iterator[np.ndarray]:
        """All frames of a video."""
        jpegs = self._jpegs(index)
        for frame in range(len(jpegs)):
            yield boxes.crop(self._decode(index, jpegs, frame), box)

    def _jpegs(self, index: int) -> Sequence[bytes]:
        # Imported here, as it takes a second and other data sets do not need it.
        from tensorflow_datasets.proto import tf_example_pb2

        if self._records is None:
            self._records = array_record_data_source.ArrayRecordDataSource(
                shard_files(self._folder)
            )
        number = self._numbers[index]
        feature = tf_example_pb2.Example.FromString(self._records[number]).features.feature
        jpegs = feature["frames"].bytes_list.value
        if len(jpegs) != self.num_frames[index]:
            raise ValueError(
                f"{self._folder}: record {number} has {len(jpegs)} frames and not the "
                f"{self.num_frames[index]} of {self.names[index]}; build the data set again"
            )
        return jpegs

    def _decode(self, index: int, jpegs: Sequence[bytes], frame: int) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(jpegs[frame], np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None or pixels.shape[:2] != self._sizes[index]:
            raise ValueError(
                f"{self._folder}: frame {frame} of {self.names[index]} is damaged; build the data "
                "set again"
            )
        return pixels


def _split(build: Build, name: str, split: str) -> dict[str, Any]:
    if split not in build.splits:
        raise ValueError(
            f"{name} has no split {split!r} in {build.folder}; it has {', '.join(build.splits)}"
        )
    return build.splits[split]


def _labels(build: Build, name: str, split: str, part: str, multi_label: bool) -> list[Label]:
    if multi_label:
        return [tuple(of_video) for _, of_video in build.splits[split][part]]
    labels: list[Label] = []
    for number, of_video in build.splits[split][part]:
        if len(of_video) != 1:
            found = f"has {len(of_video)} labels" if of_video else "has no label"
            raise ValueError(
                f"{build.videos[number].key} {found} in {split} of {name}; classification needs "
                "one for each video, as localize of max2action has. Set "
                "config.data.multi_label=True for several classes, config.data.labels=False for "
                "frames alone"
            )
        labels.append(of_video[0])
    return labels
