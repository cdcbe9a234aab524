"""From videos to batches: what training and evaluation take from a data set.

A data set only has to be able to read frames (`Videos`); which frames, in which order and in which
batches is decided here, the same way for every data set.

**Training** is one endless stream of clips, numbered 0, 1, 2, ...: epoch after epoch, every epoch a
new permutation of the videos, each clip with its own start, crop and flip. Clip n is a function of
the seed and n alone, and batch b is made of clips `b * B` to `b * B + B - 1`. So batches are the
same for any number of workers, the stream goes on from any batch without replaying anything, and P
processes that each make a P-th of every batch make, together, exactly the batches of one process.
Batches run across the ends of epochs: no video is dropped, and a folder with fewer videos than a
batch still trains.

**Testing** goes through every test video once, all of its frames, in clips of K frames, and stops.

Nothing here needs JAX: it runs in worker processes, too.
"""

import dataclasses
import functools
import json
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import grain
import ml_collections
import numpy as np
from absl import flags

from data.batches import sampling
from data.workers import ahead, memory

Batch = dict[str, np.ndarray]


class Videos(Protocol):
    """A set of videos, numbered from 0. It has to be picklable, for the worker processes.

    Attributes:
      labels: the class of every video, an index into the classes of the data set.
      num_frames: the number of frames of every video, each at least 1.
      fingerprint: a short string that changes when the videos change; it goes into checkpoints.
    """

    labels: Sequence[int]
    num_frames: Sequence[int]
    fingerprint: str

    def frame_size(self, video: int) -> tuple[int, int]:
        """Height and width of the frames of a video, in pixels, before the crop."""

    def read(
        self, video: int, frames: np.ndarray, box: sampling.Box, rng: np.random.Generator
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

    def stream(self, video: int, box: sampling.Box) -> Iterator[np.ndarray]:
        """Yields the part `box` of every frame of a test video: uint8 [height, width, 3]."""


class Splits(NamedTuple):
    """What there is to train on and to test."""

    classes: Sequence[str]  # their names, in the order of the labels
    train: Videos
    test: Videos
    skipped: Sequence[tuple[str, str]] = ()  # bad files that were left out, `(path, reason)` each


class ClipOptions(NamedTuple):
    """What clips and batches are made like; the fields of `config.data` with the same names."""

    num_frames: int  # K, frames of a clip
    size: int  # height and width of a clip, pixels
    stride: int  # 1 takes every frame
    flip: bool  # mirror half of the training clips
    batch_size: int  # clips of a batch, over all processes
    num_workers: int  # processes that make training batches; 0 makes them in this one

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "ClipOptions":
        """Those of a data set's config."""
        return cls(**{name: config[name] for name in cls._fields})


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set, ready for training and evaluation.

    Attributes:
      classes: the names of the classes, in the order of the labels.
      num_train: how many videos an epoch has.
      num_test: how many test videos there are.
      steps_per_epoch: how many batches it takes to have seen every training video, `num_train`
        divided by the batch size, rounded up.
      train: a Grain `IterDataset` of batches `{"frames": uint8 [B, K, H, W, 3], "label": int32
        [B]}`, without end. Its iterators have `get_state` and `set_state` and go into checkpoints
        with `grain.checkpoint.CheckpointSave`; `close()` ends their workers. B is the batch size
        divided by the number of processes.
      skipped: the bad files that were left out, `(path, reason)` each.
      videos: those of "train" and "test".
    """

    classes: tuple[str, ...]
    num_train: int
    num_test: int
    steps_per_epoch: int
    train: grain.IterDataset
    skipped: tuple[tuple[str, str], ...]
    videos: Mapping[str, Videos] = dataclasses.field(repr=False)
    _test: Callable[[int | None], Iterator[Batch]] = dataclasses.field(repr=False)

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """A fresh iterator over the whole test set: every frame of every video exactly once.

        Args:
          batch_size: clips of a batch over all processes; None takes that of training.

        Returns:
          An iterator of batches, all of one shape:
            frames: uint8 [B, K, H, W, 3], the centre crop of up to K frames of one video;
            mask: bool [B, K], False for the frames that only fill the clip or the batch up;
            label: int32 [B], the class, or -1 in a row that only fills the batch up;
            video: int32 [B], 0 to num_test - 1, or -1.
          With a stride s, a clip takes every s-th frame, as in training, and s clips share a block
          of `s * K` frames. The clips of a video come one after the other. Every process gets
          other videos and the same number of batches.
        """
        return self._test(batch_size)


def make_source(
    splits: Splits,
    options: ClipOptions,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Source:
    """Makes batches of the videos of `splits`.

    Raises:
      ValueError: if an option is out of range, the batch size is no multiple of `process_count`,
        there is no training video, the crop does not fit into some video, or a video has no frames
        or a label that is not the number of a class.
    """
    _check(options, seed, process_index, process_count)
    train, test = splits.train, splits.test
    if not len(train.labels):
        raise ValueError("there is no training video")
    for part, videos in (("training", train), ("test", test)):
        _check_videos(part, videos, len(splits.classes), options.size)
    make_test = functools.partial(_test_batches, test, options, process_index, process_count)

    def test_batches(batch_size: int | None) -> Iterator[Batch]:
        # Checked here, not at the first batch: a generator would only find out then.
        return make_test(_per_process(batch_size or options.batch_size, process_count))

    return Source(
        classes=tuple(splits.classes),
        num_train=len(train.labels),
        num_test=len(test.labels),
        steps_per_epoch=math.ceil(len(train.labels) / options.batch_size),
        train=_TrainBatches(train, options, seed, process_index, process_count),
        skipped=tuple(splits.skipped),
        videos={"train": train, "test": test},
        _test=test_batches,
    )


class _TrainClip:
    """Makes the clip at one position of the training stream."""

    def __init__(self, videos: Videos, options: ClipOptions):
        self._videos = videos
        self._options = options

    def __call__(self, video: int, rng: np.random.Generator) -> Batch:
        options, videos = self._options, self._videos
        # The order of the draws is part of the stream: start, top, left, flip, the data set's own.
        frames = sampling.clip_frames(
            rng, videos.num_frames[video], options.num_frames, options.stride
        )
        box = sampling.random_crop(rng, *videos.frame_size(video), options.size)
        flipped = options.flip and rng.random() < 0.5
        clip = videos.read(video, frames, box, rng)
        return {
            "frames": _mirrored(clip) if flipped else clip,
            "label": np.int32(videos.labels[video]),
        }


def _mirrored(clip: np.ndarray) -> np.ndarray:
    """`sampling.flip` as an array of its own, of uint8 [K, H, W, 3].

    NumPy takes 5 ms to copy the view of a clip of 64 frames of 112x112 pixels, OpenCV 0.2 ms.
    """
    mirrored = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, mirrored, strict=True):
        cv2.flip(frame, 1, dst=target)
    return mirrored


class _TrainBatches(grain.IterDataset):
    """The endless stream of training batches of one process."""

    def __init__(
        self,
        videos: Videos,
        options: ClipOptions,
        seed: int,
        process_index: int,
        process_count: int,
    ):
        super().__init__()
        order_seed, clip_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        self._num_workers = options.num_workers
        self._process_index = process_index
        self._process_count = process_count
        self._stream = {
            "seed": seed,
            **options._asdict(),
            "num_train": len(videos.labels),
            "videos": videos.fingerprint,
        }
        del self._stream["num_workers"]  # the stream does not depend on it
        # Everything below is a function of the position in the stream. Repeating before batching
        # lets batches run across the ends of epochs.
        self._batches = (
            grain.MapDataset.range(len(videos.labels))
            .shuffle(order_seed)
            .repeat()
            .random_map(_TrainClip(videos, options), seed=clip_seed)
            .batch(_per_process(options.batch_size, process_count), drop_remainder=True)
        )

    def __str__(self) -> str:
        return "TrainBatches"

    def __iter__(self) -> grain.DatasetIterator:
        return _TrainIterator(self.batches_from, self._stream)

    def batches_from(self, first: int) -> grain.DatasetIterator:
        """This process's part of batch `first` and of all that follow."""
        first = first * self._process_count + self._process_index
        batches = self._batches.slice(slice(first, None, self._process_count))
        if self._num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain asks absl for its settings when it starts workers. In a notebook or a test
                # nobody has parsed any, and the defaults are what is meant.
                flags.FLAGS.mark_as_parsed()
            # Grain's default, 16 threads and 500 elements ahead, is meant for small records.
            reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            workers = grain.multiprocessing.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=2
            )
            stream = batches.to_iter_dataset(reading).mp_prefetch(workers, _start_worker)
        else:
            reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
            stream = batches.to_iter_dataset(reading)
        return iter(stream)


class _TrainIterator(grain.DatasetIterator):
    """Goes through the training batches and knows where it is.

    Its state is the number of batches that were taken, and what they were taken from. Grain's own
    state would be tied to the number of workers; a number of batches is not.
    """

    def __init__(
        self, batches_from: Callable[[int], grain.DatasetIterator], stream: Mapping[str, Any]
    ):
        super().__init__()
        self._batches_from = batches_from
        self._stream = dict(stream)
        self._next_batch = 0
        self._batches = []  # the iterator, while there is one
        self._ended = False
        # Also when Python exits: Grain complains about workers that are still there by then.
        self._stop = weakref.finalize(self, _close_all, self._batches)

    def __str__(self) -> str:
        return "TrainIterator"

    def __next__(self) -> Batch:
        self.start_prefetch()
        batch = next(self._batches[0])
        self._next_batch += 1
        return batch

    def start_prefetch(self) -> None:
        """Starts to make batches, if that has not begun."""
        if self._ended:
            raise ValueError("this iterator over the training batches was closed")
        if not self._batches:
            self._batches.append(self._batches_from(self._next_batch))
            self._batches[0].start_prefetch()

    def get_state(self) -> dict[str, Any]:
        """The state, a new JSON-compatible dictionary."""
        return {"next_batch": self._next_batch, "stream": dict(self._stream)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken; the next batch is the one that followed there.

        The number of workers and of processes may be another one.

        Raises:
          ValueError: if the state is not one of these, or belongs to other videos or options.
        """
        if set(state) != {"next_batch", "stream"}:
            raise ValueError(
                f"not a state of the training batches: {json.dumps(state, default=repr)[:200]}"
            )
        was, now = state["stream"], self._stream
        changed = [
            f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]
        if changed:
            raise ValueError(
                "the checkpoint was made with other training batches, so training cannot go on "
                f"exactly: {'; '.join(changed)}. Set the videos and the options back, or start "
                "anew in another workdir."
            )
        _close_all(self._batches)
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Ends the worker processes and threads. No batch comes after that."""
        self._ended = True
        self._stop()
        super().close()


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    memory.keep_freed()


def _test_batches(
    videos: Videos, options: ClipOptions, process_index: int, process_count: int, rows: int
) -> Iterator[Batch]:
    shares = [range(p, len(videos.labels), process_count) for p in range(process_count)]
    # Every process has to take part in every step, so all of them get as many batches as the one
    # with the most to do.
    num_batches = max(math.ceil(_num_rows(videos, options, share) / rows) for share in shares)
    stream = ahead.concatenated(
        functools.partial(_test_rows, videos, options),
        shares[process_index],
        num_threads=max(2, options.num_workers),
        depth=2,
    )
    shape = (options.num_frames, options.size, options.size, 3)
    filling = {
        "frames": np.zeros(shape, np.uint8),
        "mask": np.zeros(options.num_frames, bool),
        "label": np.int32(-1),
        "video": np.int32(-1),
    }
    for _ in range(num_batches):
        batch = [next(stream, filling) for _ in range(rows)]
        yield {name: np.stack([row[name] for row in batch]) for name in filling}


def _test_rows(videos: Videos, options: ClipOptions, video: int) -> Iterator[Batch]:
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
            label = np.int32(videos.labels[video])
            yield {"frames": clip, "mask": mask, "label": label, "video": np.int32(video)}
        filled = 0


def _num_rows(videos: Videos, options: ClipOptions, share: Sequence[int]) -> int:
    return sum(
        sampling.num_covering_clips(videos.num_frames[video], options.num_frames, options.stride)
        for video in share
    )


def _per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a positive multiple of the number of "
            f"processes, {process_count}, because every process makes an equal part of each batch"
        )
    return batch_size // process_count


def _check_videos(part: str, videos: Videos, num_classes: int, size: int) -> None:
    for video, (label, num_frames) in enumerate(zip(videos.labels, videos.num_frames, strict=True)):
        if not 0 <= label < num_classes:
            raise ValueError(
                f"{part} video {video} has the label {label}; it must be the number of a class, "
                f"from 0 to {num_classes - 1}"
            )
        if num_frames < 1:
            raise ValueError(f"{part} video {video} has {num_frames} frames; it must be at least 1")
        sampling.centre_crop(*videos.frame_size(video), size)  # raises if it does not fit


def _check(options: ClipOptions, seed: int, process_index: int, process_count: int) -> None:
    for name in ("num_frames", "size", "stride", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least 1")
    if options.num_workers < 0:
        raise ValueError(f"num_workers is {options.num_workers}; it must be 0 or more")
    if seed < 0:
        raise ValueError(f"the seed is {seed}; it must be 0 or more")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index}; with {process_count} processes it must be from 0 "
            f"to {process_count - 1}"
        )
    _per_process(options.batch_size, process_count)
