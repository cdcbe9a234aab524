"""The network of a config, and what it starts from."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data import imported
from experiments.configs.common import DTYPES
from experiments.running import learned, starting
from experiments.workdir import checkpoints, classes
from experiments.workdir.classes import Classes
from sideways_jax import Network, models
from sideways_jax.tools.names import check_name


def make_network(options: ConfigDict, num_classes: int) -> Network:
    """The network of `config.model`, with an output for every class.

    Args:
      options: "name", of `sideways_jax.models` or as "MODULE:FUNCTION" of your own (docs/own.md),
        and the other arguments of that function; "weights" is left alone.
      num_classes: its first argument.

    Raises:
      ValueError: for an unknown network, or an argument that it does not have.
    """
    arguments = options.to_dict()
    name = arguments.pop("name")
    if ":" not in name:
        arguments.pop("weights", None)
        check_name("model.dtype", options.get("dtype", "float32"), DTYPES)
        check_name("network", name, models.NETWORKS)
        _check_arguments(name, arguments)
        return models.make(name, num_classes, **arguments)
    network = imported(name, "network")(num_classes, **arguments)
    if not isinstance(network, Network):
        raise ValueError(f"{name} gives {network!r}, not a sideways_jax.Network")
    return network


def _check_arguments(name: str, arguments: Collection[str]) -> None:
    """Raises ValueError where only the name of a network was changed."""
    valid = inspect.signature(models.NETWORKS[name]).parameters
    if unknown := [one for one in arguments if one not in valid]:
        raise ValueError(
            f"config.model has {', '.join(unknown)}, which {name} has not: it has "
            f"{', '.join(one for one in valid if one != 'num_classes')}. To choose a network with "
            f"its fields, write --config=FILE:model={name}"
        )


def frame_shape(data: ConfigDict) -> jax.ShapeDtypeStruct:
    """A batch of frames of `config.data`."""
    return jax.ShapeDtypeStruct((data.batch_size, data.size, data.size, 3), jnp.uint8)


def start(config: ConfigDict, known: Classes, workdir: Path) -> starting.Start:
    """The network of a run, with the weights that it starts from.

    Args:
      config: of the run: `model.weights` is a file, `init_from` the workdir of another run.
      known: the classes.
      workdir: of the run. One that has saved something goes on, and reads neither.

    Raises:
      FileNotFoundError: if there is no such file or run.
      ValueError: if both are given; and for weights of another network.
    """
    network = make_network(config.model, len(known.names))
    is_own, frame = ":" in config.model.name, frame_shape(config.data)
    file = "" if is_own else config.model.get("weights", "")
    if file and config.init_from:
        raise ValueError(
            f"model.weights={file} and init_from={config.init_from}: a run starts from one of the "
            "two; leave out the other"
        )
    if starting.is_going_on(workdir) or not (file or config.init_from):
        return starting.Start(network, "")
    key = jax.random.key(config.seed)
    if file:
        return starting.from_file(config.model.name, file, network, frame, key)
    other, there = _other(config.init_from, config.task, workdir)
    new, why = (), ""
    if there != known:
        new = _head(config.model, len(known.names), frame)
        why = (
            f"the head is new: its classes there are {_listed(there)}, and are {_listed(known)} now"
        )
    return starting.from_run(other, config.model, network, frame, key, new=new, why=why)


def _other(init_from: str, task: str, workdir: Path) -> tuple[starting.Other, Classes]:
    """A run to start from, and its classes."""
    config = starting.check_other(init_from, task, workdir)
    there = Path(init_from).expanduser()
    known, folder = classes.read(there), checkpoints.find(there, "last")
    network = make_network(config.model, len(known.names))
    variables = learned.read(folder, config, network, frame_shape(config.data))
    return starting.Other(init_from, int(folder.name), config.model, variables), known


def _head(model: ConfigDict, num_classes: int, frame: jax.ShapeDtypeStruct) -> set[int]:
    """The leaves of `network.init` that depend on the number of classes."""
    one, other = (
        jax.tree.leaves(jax.eval_shape(make_network(model, n).init, jax.random.key(0), frame))
        for n in (num_classes, num_classes + 1)
    )
    pairs = enumerate(zip(one, other, strict=True))
    return {n for n, (a, b) in pairs if a.shape != b.shape}


def _listed(known: Classes) -> str:
    names = known.names
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} ({', '.join(map(repr, names[:3]))}{more})"
