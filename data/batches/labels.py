"""Labels as they are in batches: the number of a class, or a truth value for each."""

from collections.abc import Iterable

import numpy as np

Label = int | Iterable[int]  # of one video: the number of its class, or of its classes


def encoded(label: Label, num_classes: int | None) -> np.ndarray:
    """The label of a video in a batch.

    Args:
      label: as `Videos.labels` has it.
      num_classes: None where every video has one class.

    Returns:
      int32 [], or uint8 [C] with a 1 for every class of the video.

    >>> encoded((0, 2), 4).tolist()
    [1, 0, 1, 0]
    """
    if num_classes is None:
        return np.int32(label)
    several = np.zeros(num_classes, np.uint8)
    several[list(label)] = 1
    return several


def filling(num_classes: int | None) -> np.ndarray:
    """The label of a row that only fills a batch up: -1, or no class at all."""
    return np.int32(-1) if num_classes is None else np.zeros(num_classes, np.uint8)


def classes_of(label: Label) -> tuple[int, ...]:
    """The classes of a video, one or several.

    >>> classes_of(3), classes_of((0, 2))
    ((3,), (0, 2))
    """
    return tuple(label) if isinstance(label, Iterable) else (int(label),)
