"""What a trained classifier says of files, folders, cameras and addresses."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from data import BadVideo, Streams, default_config, is_live, load_files, load_streams
from experiments.jobs.classification.accuracy import averaged, make_sums
from experiments.running.protocol import Trained
from sideways_jax import Network


class Prediction(NamedTuple):
    """Of one video, over all of its frames; or why there is none."""

    source: str
    frames: int = 0  # how many were looked at
    probabilities: np.ndarray | None = None  # [C]
    error: str | None = None


class Classifier(NamedTuple):
    """A trained network, and how frames are made for it."""

    network: Network
    params: tuple
    state: tuple
    num_classes: int
    multi_label: bool  # whether a video may have several
    average: str  # over frames, of logits or probabilities
    size: int  # of crops, pixels
    resize: int  # of the shorter side before that
    num_frames: int  # of a clip
    batch_size: int  # clips of a batch


def classifier_of(run: Trained, resize: int | None = None) -> Classifier:
    """The network of a run; `resize` in the place of what the run did."""
    data = run.config.data
    size, resize = frame_sizes(data, resize)
    return Classifier(
        run.network, run.params, run.state, len(run.classes), run.multi_label,
        run.config.eval.average, size, resize, data.num_frames, data.batch_size,
    )  # fmt: skip


def frame_sizes(data: ConfigDict, resize: int | None = None) -> tuple[int, int]:
    """`(size, resize)` with which the run saw its test videos; `resize` in the place of its own.

    A data set that was built says in its name what it was resized to; one that draws its videos
    has nothing to resize.

    >>> frame_sizes(ConfigDict({"size": 112, "variant": "side_128"}))
    (112, 128)
    """
    if resize is None:
        side = re.search(r"side_(\d+)", data.get("variant", ""))
        resize = data.get("resize", int(side[1]) if side else data.size)
    return data.size, resize


def predict(
    classifier: Classifier, sources: Sequence[str], *, live_frames: int
) -> Iterator[Prediction]:
    """A prediction for every file, camera and address; for every file of a folder.

    Args:
      classifier: what looks at them.
      sources: files and folders; cameras and addresses as in `video_file`.
      live_frames: how many frames of a camera or an address are looked at; 0: until its end.

    Returns:
      Predictions, one after the other. The network is compiled when this returns, so that the time
      of the predictions is that of videos.
    """
    sum_over_frames = make_sums(
        classifier.network, classifier.average, multi_label=classifier.multi_label
    )  # fmt: skip
    compiled = _compiled(classifier, sum_over_frames)
    return itertools.chain(
        _of_files(classifier, compiled, [one for one in sources if not is_live(one)]),
        (_of_live(classifier, compiled, one, live_frames) for one in sources if is_live(one)),
    )


def _compiled(classifier: Classifier, sum_over_frames):
    """The function for batches of the files, compiled."""
    shape = classifier.batch_size, classifier.num_frames
    frames = jax.ShapeDtypeStruct((*shape, classifier.size, classifier.size, 3), np.uint8)
    mask = jax.ShapeDtypeStruct(shape, bool)
    function = sum_over_frames.lower(classifier.params, classifier.state, frames, mask).compile()

    def sums(frames, mask):
        return np.asarray(function(classifier.params, classifier.state, frames, mask), np.float64)

    return sums


def _of_files(classifier: Classifier, sums, paths: Sequence[str]) -> Iterator[Prediction]:
    if not paths:
        return
    sizes = {name: getattr(classifier, name) for name in
             ("size", "resize", "num_frames", "batch_size")}  # fmt: skip
    files = load_files(paths, **sizes)
    yield from (Prediction(path, error=reason) for path, reason in files.bad)
    totals = np.zeros((len(files.paths), classifier.num_classes))
    counts = np.zeros(len(files.paths), int)
    for batch in files.batches() if files.paths else ():
        of_clips = sums(batch["frames"], batch["mask"])
        for row in np.flatnonzero(batch["mask"].any(axis=1)):
            video = batch["video"][row]
            totals[video] += of_clips[row]
            counts[video] += batch["mask"][row].sum()
            if counts[video] == files.num_frames[video]:
                yield _prediction(classifier, files.paths[video], totals[video], counts[video])


def _of_live(classifier: Classifier, sums, source: str, live_frames: int) -> Prediction:
    config = default_config("video_file")
    config.path, config.size, config.repeat = source, max(classifier.resize, classifier.size), False
    total, count = np.zeros(classifier.num_classes), 0
    name = source
    try:
        with contextlib.closing(load_streams(config, seed=0, split="all")) as streams:
            name = streams.name
            for clips, mask in _clips(classifier, streams, live_frames or None):
                total += sums(clips, mask)[0]
                count += int(mask.sum())
    except BadVideo as error:
        if not count:
            return Prediction(name, error=error.reason)
    return _prediction(classifier, name, total, count)


def _clips(
    classifier: Classifier, streams: Streams, most: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of frames of which the first row alone is a clip, and which frames are there."""
    size = classifier.size
    shape = classifier.batch_size, classifier.num_frames
    frames = itertools.islice((batch["frames"][0] for batch in streams), most)
    while clip := list(itertools.islice(frames, classifier.num_frames)):
        edge = (clip[0].shape[0] - size) // 2
        clips = np.zeros((*shape, size, size, 3), np.uint8)
        clips[0, : len(clip)] = np.stack(clip)[:, edge : edge + size, edge : edge + size]
        mask = np.zeros(shape, bool)
        mask[0, : len(clip)] = True
        yield clips, mask


def _prediction(classifier: Classifier, source: str, total: np.ndarray, count: int) -> Prediction:
    [probabilities] = averaged(
        total[None], np.array([count]), classifier.average, multi_label=classifier.multi_label
    )  # fmt: skip
    return Prediction(source, int(count), probabilities)
