"""Test batches: every frame of every test video once, in clips of K frames."""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from data.batches import labels, sampling
from data.batches.videos import Batch, ClipOptions, Videos
from data.workers import ahead


def test_batches(
    videos: Videos,
    options: ClipOptions,
    process_index: int,
    process_count: int,
    rows: int,
    num_classes: int | None = None,
) -> Iterator[Batch]:
    """Yields this process's test batches of `rows` clips; `Source.test` says what is in them.

    `num_classes` is that of videos that may have several classes.
    """
    shares = [range(p, len(videos.labels), process_count) for p in range(process_count)]
    # Every process has to take part in every step, so all of them get as many batches as the one
    # with the most to do.
    num_batches = max(math.ceil(_num_rows(videos, options, share) / rows) for share in shares)
    stream = ahead.concatenated(
        functools.partial(_test_rows, videos, options, num_classes),
        shares[process_index],
        num_threads=max(2, options.num_workers),
        depth=2,
    )
    shape = (options.num_frames, options.size, options.size, 3)
    filling = {
        "frames": np.zeros(shape, np.uint8),
        "mask": np.zeros(options.num_frames, bool),
        "label": labels.filling(num_classes),
        "video": np.int32(-1),
    }
    for _ in range(num_batches):
        batch = [next(stream, filling) for _ in range(rows)]
        yield {name: np.stack([row[name] for row in batch]) for name in filling}


def _test_rows(
    videos: Videos, options: ClipOptions, num_classes: int | None, video: int
) -> Iterator[Batch]:
    """The clips of one test video, with at most `stride * K` of its frames in memory."""
    box = sampling.centre_crop(*videos.frame_size(video), options.size)
    span = options.num_frames * options.stride
    block = np.empty((span, options.size, options.size, 3), np.uint8)
    filled = 0
    for number, frame in enumerate(videos.stream(video, box), start=1):
        block[filled] = frame
        filled += 1
        if filled < span and number < videos.num_frames[video]:
            continue
        for frames in sampling.covering_clips(filled, options.num_frames, options.stride):
            clip, mask = sampling.pad_clip(block[frames], options.num_frames)
            label = labels.encoded(videos.labels[video], num_classes)
            yield {"frames": clip, "mask": mask, "label": label, "video": np.int32(video)}
        filled = 0


def _num_rows(videos: Videos, options: ClipOptions, share: Sequence[int]) -> int:
    return sum(
        sampling.num_covering_clips(videos.num_frames[video], options.num_frames, options.stride)
        for video in share
    )
