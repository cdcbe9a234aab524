"""What learns from clips in a comparison: three functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Learned(NamedTuple):
    """What a network has learned, where a `TrainState` is not needed."""

    params: tuple  # of every module
    state: tuple  # likewise
    opt_state: Any


class Learner(NamedTuple):
    """A network and how it learns; clips are frames `[K, B, ...]` and labels `[B]`."""

    init: Callable[
        [jax.Array, jax.ShapeDtypeStruct], Any
    ]  # (key, frame): what is learned, at first
    train_on: Callable[
        [Any, jax.Array, jax.Array], Any
    ]  # (learned, frames, label): after an update
    predict: Callable[[Any, jax.Array], jax.Array]  # (learned, frames): logits [B, classes]
