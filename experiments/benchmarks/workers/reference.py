"""A file with weights, a clip and logits, to compute the same in another framework."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from sideways_jax.network.network import Network


def save(
    path: str | Path, network: Network, key: jax.Array, frames: np.ndarray, labels: np.ndarray
) -> None:
    """Writes the first weights of a `TrainState` made from `key`, a clip, and logits.

    The file is NumPy's npz: `frames` [K, B, H, W, C], `labels` [K, B], `logits` [B, classes] of the
    first frame, and the parameters, `0/conv/kernel` for example.
    """

    @jax.jit
    def start(key):
        params_key, _ = jax.random.split(key)  # As `TrainState`s are made.
        params, state = network.init(params_key, frames[0])
        return params, network.apply(params, state, frames[0])[0]

    params, logits = start(key)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(where, simple=True, separator="/") for where, _ in leaves]
    weights = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    np.savez(path, frames=frames, labels=labels, logits=np.asarray(logits), **weights)
