"""Training batches: one endless stream of clips, numbered 0, 1, 2, ...

Epoch follows epoch, each with a new permutation of the videos, and each clip with its own start,
crop and flip. Clip n is a function of the seed and n alone, and batch b is made of clips `b * B` to
`b * B + B - 1`. So batches are the same for any number of workers, the stream goes on from any
batch without replaying anything, and P processes that each make a P-th of every batch make,
together, exactly the batches of one process. Batches run across the ends of epochs: no video is
dropped, and a folder with fewer videos than a batch still trains.
"""

import json
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from data.batches import augmentation, labels, sampling
from data.batches.videos import Batch, ClipOptions, Videos
from data.workers import memory


class TrainBatches(grain.IterDataset):
    """The endless stream of training batches of one process."""

    def __init__(
        self,
        videos: Videos,
        options: ClipOptions,
        seed: int,
        process_index: int,
        process_count: int,
        num_classes: int | None = None,  # of videos that may have several classes
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
        for name in ("scale", "colour"):  # Streams of before there were these had the defaults.
            if self._stream[name] == ClipOptions._field_defaults[name]:
                del self._stream[name]
        # Everything below is a function of the position in the stream. Repeating before batching
        # lets batches run across the ends of epochs.
        self._batches = (
            grain.MapDataset.range(len(videos.labels))
            .shuffle(order_seed)
            .repeat()
            .random_map(_TrainClip(videos, options, num_classes), seed=clip_seed)
            .batch(options.batch_size // process_count, drop_remainder=True)
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
                # no flags have been parsed, and Grain's defaults are meant.
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
    """Goes through the training batches and counts them.

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


class _TrainClip:
    """Makes the clip at one position of the training stream."""

    def __init__(self, videos: Videos, options: ClipOptions, num_classes: int | None):
        self._videos = videos
        self._options = options
        self._num_classes = num_classes

    def __call__(self, video: int, rng: np.random.Generator) -> Batch:
        options, videos = self._options, self._videos
        # The order of the draws is part of the stream: start, the side of the crop if it varies,
        # top, left, flip, the data set's own, colours if they vary.
        frames = sampling.clip_frames(
            rng, videos.num_frames[video], options.num_frames, options.stride
        )
        size = videos.frame_size(video)
        side = options.size
        if tuple(options.scale) != (1, 1):
            side = augmentation.drawn_side(rng, side, options.scale, *size)
        box = sampling.random_crop(rng, *size, side)
        flipped = options.flip and rng.random() < 0.5
        clip = augmentation.resized(videos.read(video, frames, box, rng), options.size)
        if options.colour:
            clip = augmentation.jittered(clip, rng, options.colour)
        return {
            "frames": _mirrored(clip) if flipped else clip,
            "label": labels.encoded(videos.labels[video], self._num_classes),
        }


def _mirrored(clip: np.ndarray) -> np.ndarray:
    """`sampling.flip` as an array of its own, of uint8 [K, H, W, 3].

    NumPy takes 5 ms to copy the view of a clip of 64 frames of 112x112 pixels, OpenCV 0.2 ms.
    """
    mirrored = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, mirrored, strict=True):
        cv2.flip(frame, 1, dst=target)
    return mirrored


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    cv2.setNumThreads(1)  # the worker processes are the parallelism
    memory.keep_freed()
