"""The network of a run, to use it after training: the door to a workdir.

    from experiments import trained

    network, params, state, classes, *_ = trained.load("/tmp/quickstart")
    logits, _ = network.apply(params, state, frames)  # uint8 [B, size, size, 3] to [B, classes]

It takes workdirs of both jobs, of any execution and any number of devices. Nothing in the workdir
changes, so that it may belong to a run that is still going on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.configs._newer import completed
from experiments.jobs.autoencoding import job as autoencoding
from experiments.jobs.classification import job as classification
from experiments.running.optimizer import make_tx, params_for_tests
from experiments.running.protocol import Trained
from experiments.workdir import checkpoints, classes
from experiments.workdir.classes import Classes
from sideways_jax import Network


def load(workdir: os.PathLike[str] | str, checkpoint: int | str = "last") -> Trained:
    """What a run has learned.

    Args:
      workdir: of `experiments/main.py`.
      checkpoint: "last", "best" (of the test accuracy, or the error on a stream), or a step.

    Raises:
      FileNotFoundError: if this is no workdir, or nothing was saved in it.
      ValueError: if there is no such checkpoint, or it is damaged; and if the run is from before
        workdirs held the names of classes.
    """
    workdir = Path(workdir).expanduser()
    config = read_config(workdir)
    folder = checkpoints.find(workdir, checkpoint)
    network, frame, known = _network(config, workdir)
    params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
    opt_state = None
    if config.optimizer.ema:  # Part of the state of the optimizer.
        opt_state = jax.eval_shape(
            make_tx(config.optimizer, config.optimizer.accumulate).init, params
        )
    params, state, opt_state = checkpoints.read_weights(folder, params, state, opt_state)
    params = params_for_tests(params, opt_state)
    return Trained(
        network, params, state, known.names, config, int(folder.name), known.multi_label
    )  # fmt: skip


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    file = workdir / "config.json"
    try:
        return completed(ConfigDict(_with_tuples(json.loads(file.read_text(encoding="utf-8")))))
    except OSError as error:
        raise FileNotFoundError(
            f"{workdir} is not the workdir of a run: {file.name} is not there. Give the --workdir "
            "of experiments/main.py"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def _network(config: ConfigDict, workdir: Path) -> tuple[Network, jax.ShapeDtypeStruct, Classes]:
    """The network, a batch of its frames, and its classes."""
    if config.task == "autoencoding":
        return (
            autoencoding.make_network(config.model),
            autoencoding.frame_shape(config.data),
            Classes(),
        )
    known = classes.read(workdir)
    network = classification.make_network(config.model, len(known.names))
    return network, classification.frame_shape(config.data), known


def _with_tuples(value: Any) -> Any:
    """JSON with a tuple for every list, as configs have them."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
