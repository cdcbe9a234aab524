"""The network of a run, to use it after training: the door to a workdir.

    from experiments import trained

    network, params, state, classes, *_ = trained.load("/tmp/quickstart")
    logits, _ = network.apply(params, state, frames)  # uint8 [B, size, size, 3] to [B, classes]

It takes workdirs of both jobs, of any execution and any number of devices. Nothing in the workdir
changes, so that it may belong to a run that is still going on.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.jobs.autoencoding import job as autoencoding
from experiments.jobs.classification import job as classification
from experiments.running import learned
from experiments.running.protocol import Trained
from experiments.workdir import checkpoints, classes
from experiments.workdir import config as workdirs
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
    config = workdirs.read(workdir)
    folder = checkpoints.find(workdir, checkpoint)
    network, frame, known = _network(config, workdir)
    params, state = learned.read(folder, config, network, frame)
    return Trained(
        network, params, state, known.names, config, int(folder.name), known.multi_label
    )  # fmt: skip


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
