"""From videos to batches: what training and evaluation take from a data set.

A data set only has to be able to read frames (`Videos`). Which frames, in which order and in which
batches is decided in this package, the same way for every data set: `training` makes an endless
stream of clips, `testing` goes through every test video once.

Nothing here needs JAX: it runs in worker processes, too.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import grain

from data.batches import sampling
from data.batches.labels import classes_of
from data.batches.testing import test_batches
from data.batches.training import TrainBatches
from data.batches.videos import Batch, ClipOptions, Splits, Videos


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
      multi_label: whether a video may have several classes: "label" is uint8 [B, C] then, a 1 for
        every class of a video.
    """

    classes: tuple[str, ...]
    num_train: int
    num_test: int
    steps_per_epoch: int
    train: grain.IterDataset
    skipped: tuple[tuple[str, str], ...]
    videos: Mapping[str, Videos] = dataclasses.field(repr=False)
    multi_label: bool
    _test: Callable[[int | None], Iterator[Batch]] = dataclasses.field(repr=False)

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """A fresh iterator over the whole test set: every frame of every video exactly once.

        Args:
          batch_size: clips of a batch over all processes; None takes that of training.

        Returns:
          An iterator of batches, all of one shape:
            frames: uint8 [B, K, H, W, 3], the centre crop of up to K frames of one video;
            mask: bool [B, K], False for the frames that only fill the clip or the batch up;
            label: int32 [B], the class, or -1 in a row that only fills the batch up (with
              `multi_label` uint8 [B, C], zeros there);
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
    check_options(options, seed, process_index, process_count)
    train, test = splits.train, splits.test
    if not len(train.labels):
        raise ValueError("there is no training video")
    for part, videos in (("training", train), ("test", test)):
        _check_videos(part, videos, len(splits.classes), options.size)
    several = len(splits.classes) if splits.multi_label else None

    def tested(batch_size: int | None) -> Iterator[Batch]:
        # Checked here, not at the first batch: a generator would only find out then.
        rows = _per_process(batch_size or options.batch_size, process_count)
        return test_batches(test, options, process_index, process_count, rows, several)

    return Source(
        classes=tuple(splits.classes),
        num_train=len(train.labels),
        num_test=len(test.labels),
        steps_per_epoch=math.ceil(len(train.labels) / options.batch_size),
        train=TrainBatches(train, options, seed, process_index, process_count, several),
        skipped=tuple(splits.skipped),
        videos={"train": train, "test": test},
        multi_label=splits.multi_label,
        _test=tested,
    )


def check_options(options: ClipOptions, seed: int, process_index: int, process_count: int) -> None:
    """Raises ValueError if one of these is out of range, whatever the videos are."""
    for name in ("num_frames", "size", "stride", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least 1")
    low, high = options.scale
    if not 0 < low <= high:
        raise ValueError(
            f"scale is {options.scale}; it must be two numbers above 0, the larger one last"
        )
    if not 0 <= options.colour <= 1:
        raise ValueError(f"colour is {options.colour}; it must be from 0 to 1")
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


def _per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a positive multiple of the number of "
            f"processes, {process_count}, because every process makes an equal part of each batch"
        )
    return batch_size // process_count


def _check_videos(part: str, videos: Videos, num_classes: int, size: int) -> None:
    for video, (label, num_frames) in enumerate(zip(videos.labels, videos.num_frames, strict=True)):
        for number in classes_of(label):
            if not 0 <= number < num_classes:
                raise ValueError(
                    f"{part} video {video} has the label {number}; it must be the number of a "
                    f"class, from 0 to {num_classes - 1}"
                )
        if num_frames < 1:
            raise ValueError(f"{part} video {video} has {num_frames} frames; it must be at least 1")
        sampling.centre_crop(*videos.frame_size(video), size)  # raises if it does not fit
