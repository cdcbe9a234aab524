"""A trained classifier, tested on videos of any data set with the same classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from data import ClipOptions, Source, Splits, load, make_source
from experiments.jobs.classification.accuracy import Evaluation, make_evaluate
from experiments.terminal.names import printable
from sideways_jax import Network

SPLITS = ("test", "train", "all")


def evaluate(
    network: Network,
    params: tuple,
    state: tuple,
    classes: Sequence[str],
    data: ConfigDict,
    *,
    seed: int,
    average: str,
    split: str = "test",
) -> Evaluation:
    """Tests on videos whose classes are among those of the network, in any order.

    Args:
      network, params, state, classes: of the run.
      data: `config.data` of any data set of clips.
      seed: for a data set that draws its videos.
      average: "logits" or "probabilities".
      split: "test", "train", or "all", both of them.

    Raises:
      ValueError: for a class that the network does not have, or without videos.
    """
    source = load(data, seed=seed)
    if unknown := [name for name in source.classes if name not in classes]:
        raise ValueError(
            f"the network was not trained on {len(unknown)} of {len(source.classes)} classes: "
            f"{', '.join(map(printable, unknown[:5]))}{', ...' * (len(unknown) > 5)}; it knows "
            f"{', '.join(map(printable, classes[:5]))}{', ...' * (len(classes) > 5)}"
        )
    numbers = np.array([classes.index(name) for name in source.classes], np.int32)
    run = make_evaluate(network, average, multi_label=source.multi_label)
    parts = [
        run(params, state, _relabelled(part, numbers, len(classes)), part.num_test, len(classes))
        for part in _parts(source, data, seed, split)
    ]
    return Evaluation(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.labels for part in parts]),
        sum(part.frames for part in parts),
        [],
    )


def _parts(source: Source, data: ConfigDict, seed: int, split: str) -> list[Source]:
    """Sources whose test videos are those of the split."""
    names = ["train", "test"] if split == "all" else [split]
    train, options = source.videos["train"], ClipOptions.of(data)
    videos = [source.videos[name] for name in names if len(source.videos[name].labels)]
    if not videos:
        raise ValueError(f"there are no videos in the split {split!r}: give --split=train or all")
    return [
        make_source(
            Splits(source.classes, train, one, multi_label=source.multi_label), options, seed=seed
        )
        for one in videos
    ]


def _relabelled(
    source: Source, numbers: np.ndarray, num_classes: int
) -> Iterator[dict[str, np.ndarray]]:
    """The test batches, with the labels of the network; -1 where a row is filling."""
    for batch in source.test():
        label = batch["label"]
        if source.multi_label:
            new = np.zeros((len(label), num_classes), label.dtype)
            new[:, numbers] = label
        else:
            new = np.where(label < 0, label, numbers[label])
        yield batch | {"label": new}
