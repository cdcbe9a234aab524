"""Batches of `tests.data.videos.CodedVideos`, whose pixels say where they come from."""

import numpy as np

from data.batches.source import make_source
from data.batches.videos import ClipOptions, Splits
from tests.data import videos

OPTIONS = ClipOptions(num_frames=4, size=6, stride=1, flip=True, batch_size=4, num_workers=0)
LENGTHS = [9, 12, 3, 20, 6, 11, 30]


def source(train=LENGTHS, test=LENGTHS, *, seed=0, index=0, count=1, **options):
    return make_source(
        Splits(
            [str(video) for video in range(max(len(train), len(test)))],
            videos.CodedVideos(train),
            videos.CodedVideos(test),
        ),
        OPTIONS._replace(**options),
        seed=seed,
        process_index=index,
        process_count=count,
    )


def take(stream, number):
    return [next(stream) for _ in range(number)]


def batches(number, *args, first=None, **kwargs):
    stream = iter(source(*args, **kwargs).train)
    if first is not None:
        stream.set_state(first)
    with videos.closing_all(stream):
        return take(stream, number)


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def clips_of(batches):
    return [
        (clip, int(label))
        for batch in batches
        for clip, label in zip(batch["frames"], batch["label"], strict=True)
    ]
