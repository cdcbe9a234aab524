"""What another run has learned, read out of its workdir."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.running.optimizer import make_tx, params_for_tests
from experiments.workdir import checkpoints
from sideways_jax import Network


def read(
    folder: Path, config: ConfigDict, network: Network, frame: jax.ShapeDtypeStruct
) -> tuple[tuple, tuple]:
    """The parameters, or their average if the run keeps one, and the state of the modules.

    Args:
      folder: of the checkpoint (`checkpoints.find`).
      config, network: of that run.
      frame: the shape of a batch of its frames.

    Raises:
      ValueError: if the checkpoint is damaged.
    """
    params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
    opt_state = None
    if config.optimizer.ema:  # Part of the state of the optimizer.
        opt_state = jax.eval_shape(
            make_tx(config.optimizer, config.optimizer.accumulate).init, params
        )
    params, state, opt_state = checkpoints.read_weights(folder, params, state, opt_state)
    return params_for_tests(params, opt_state), state
