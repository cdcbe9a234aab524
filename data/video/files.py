"""Video files, or parts of them, as the videos of a data set."""

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from absl import logging

from data.video import boxes, decoding


class Video(NamedTuple):
    """One video, or a part of one.

    Where the rate of the file varies, frames are those of a constant rate; see `data.video.timing`.
    `start` and `stop` are places of `shown` then.
    """

    path: str
    label: int
    start: int  # the first frame, 0-based
    stop: int  # one more than the last
    height: int  # of the file, pixels
    width: int
    shown: array | None = None  # which frame of the file each one is; None: the same


class FileVideos:
    """Video files, decoded when they are asked for (`data.Videos`)."""

    def __init__(self, root: str, videos: Sequence[Video], resize: int):
        self.labels = [one.label for one in videos]
        self.num_frames = [one.stop - one.start for one in videos]
        # Relative to the folder, so that it may move. `shown` where it says something.
        what = [
            (os.path.relpath(one.path, root), *one[1 : 6 if one.shown is None else 7])
            for one in videos
        ]
        self.fingerprint = hashlib.sha256(repr((resize, what)).encode()).hexdigest()[:16]
        self._videos = tuple(videos)
        self._resize = resize

    def frame_size(self, index: int) -> tuple[int, int]:
        """Height and width after resizing."""
        return decoding.resized(self._videos[index].height, self._videos[index].width, self._resize)

    def read(
        self, index: int, frames: np.ndarray, box: boxes.Box, rng: np.random.Generator
    ) -> np.ndarray:
        """Some frames of a video: uint8 [K, H, W, 3]."""
        del rng
        video = self._videos[index]
        numbers = video.start + np.asarray(frames)
        if video.shown is not None:
            numbers = np.asarray(video.shown)[numbers]
        return decoding.read_frames(video.path, numbers, resize=self._resize, crop=box)

    def stream(self, index: int, box: boxes.Box) -> Iterator[np.ndarray]:
        """All frames of a video."""
        path, _, start, stop, _, _, shown = self._videos[index]
        if shown is None:
            return decoding.iter_frames(path, start=start, stop=stop, resize=self._resize, crop=box)
        return self._held(path, shown[start:stop], box)

    def _held(self, path: str, numbers: Sequence[int], box: boxes.Box) -> Iterator[np.ndarray]:
        """The frames of the file with these numbers, which never fall; held ones several times."""
        first, stop = numbers[0], numbers[-1] + 1
        times = np.bincount(np.asarray(numbers) - first)
        frames = decoding.iter_frames(path, start=first, stop=stop, resize=self._resize, crop=box)
        for frame, count in zip(frames, times, strict=True):
            yield from itertools.repeat(frame, count)


def add_file_options(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of data sets of video files; `check_file_options` checks them."""
    config.resize = 128  # pixels of the shorter side before the crop; 0 does not resize
    config.max_bad_fraction = 0.25  # loading fails when more of the files than this are bad
    config.cache_dir = ""  # where to remember which files are good; empty: the user's cache


def check_file_options(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if `max_bad_fraction`, `resize` or `size` is out of range."""
    if not 0 <= config.max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction is {config.max_bad_fraction}; it must be from 0 to 1")
    if config.resize < 0:
        raise ValueError(f"resize is {config.resize}; it must be 0 or more pixels")
    if config.resize and config.size > config.resize:
        raise ValueError(
            f"size is {config.size}, but the shorter side of a frame is resized to "
            f"{config.resize} pixels; resize to {config.size} or more"
        )


def skip_bad(
    root: str, infos: dict[str, decoding.VideoInfo | decoding.BadVideo], max_bad_fraction: float
) -> tuple[tuple[str, str], ...]:
    """The bad files, `(path, reason)` each, after a warning that names them.

    Args:
      root: the folder that the files are relative to.
      infos: what `scan.scan` found out about every file.
      max_bad_fraction: from 0 to 1.

    Raises:
      ValueError: if more than `max_bad_fraction` of the files are bad; the message names them.
    """
    bad = tuple(
        (os.path.join(root, file), info.reason)
        for file, info in infos.items()
        if isinstance(info, decoding.BadVideo)
    )
    if not bad:
        return ()
    lines = "\n".join(f"  {decoding.printable(path)}: {reason}" for path, reason in bad)
    counted = f"{len(bad)} of {len(infos)} videos are bad"
    if len(bad) > max_bad_fraction * len(infos):
        raise ValueError(
            f"{counted}, more than max_bad_fraction = {max_bad_fraction:g} allows:\n{lines}\n"
            "Repair or remove them, or raise config.data.max_bad_fraction."
        )
    logging.warning("%s and are skipped:\n%s", counted, lines)
    return bad
