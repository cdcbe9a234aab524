"""What a run starts from, if not from numbers that are drawn: a file, or another run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.workdir import config as workdirs
from experiments.workdir.files import LAST
from sideways_jax import Network, models
from sideways_jax.models import safetensors
from sideways_jax.network.given import starting_with

SHOWN = 5  # differences, in a message


class Start(NamedTuple):
    """Where a run begins."""

    network: Network  # whose `init` gives the weights
    note: str  # for the console; "" for weights that are drawn


class Other(NamedTuple):
    """A run to start from, and what it has learned."""

    workdir: str
    step: int
    model: ConfigDict
    variables: tuple[tuple, tuple]  # parameters and state


def is_going_on(workdir: Path) -> bool:
    """Whether a run has saved something there: then it does not start any more."""
    return any(one.name.isdecimal() for one in (workdir / LAST).glob("*"))


def from_file(
    name: str, file: str, network: Network, frame: jax.ShapeDtypeStruct, key: jax.Array
) -> Start:
    """Starts from a file with pretrained weights, in the layout of Hugging Face.

    Args:
      name: of the network (`models.PRETRAINED`).
      file: in the format safetensors, or a folder with `model.safetensors`.
      network, frame: of this run, and the shape of a batch of its frames.
      key: for the head, where the file has other classes.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not of this network; the message names what does not fit.
    """
    path = Path(file).expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"model.weights={file}: there is no file {path}. Give a file in the format "
            "safetensors, or the folder of one that is called model.safetensors"
        )
    shapes = jax.eval_shape(network.init, key, frame)
    try:
        fitted = models.with_weights(name, safetensors.read(path), *shapes)
    except ValueError as error:
        raise ValueError(f"model.weights={file}: {error}") from error
    note = f"Starts from {path}"
    if fitted.new_head:
        there = "none" if fitted.classes is None else f"one of {fitted.classes}"
        note += f"; the head, for the classes, is new: the file has {there}"
    variables = _drawn(network, frame, key, (fitted.params, fitted.state))
    return Start(starting_with(network, *variables), f"{note}.")


def from_run(
    other: Other,
    model: ConfigDict,
    network: Network,
    frame: jax.ShapeDtypeStruct,
    key: jax.Array,
    *,
    new: Collection[int] = (),
    why: str = "",
) -> Start:
    """Starts from what another run has learned; its network may be cut into other modules.

    Args:
      other: the run.
      model, network: of this run.
      frame: the shape of a batch of its frames.
      key: for what is new.
      new: the leaves of `network.init` that are drawn anew, by their numbers.
      why: what the note says of them.

    Raises:
      ValueError: for another network; it says what is different.
    """
    ours = jax.eval_shape(network.init, key, frame)
    names, there = list(_names(other.variables)), jax.tree.leaves(other.variables)
    wanted, here = list(_names(ours)), jax.tree.leaves(ours)
    different = [
        f"{name} is {list(theirs.shape)} there and has to be {list(one.shape)}"
        for n, (name, theirs, one) in enumerate(zip(wanted, there, here, strict=False))
        if n not in new and theirs.shape != one.shape
    ]
    if names != wanted or different:
        if names != wanted:
            different = [f"{name} is missing there" for name in wanted if name not in names]
            different += [f"{name} is there and not here" for name in names if name not in wanted]
        raise ValueError(
            f"init_from={other.workdir} has another network: "
            f"{'; '.join([*_fields(other.model, model), *different[:SHOWN]])}"
            f"{f' and {len(different) - SHOWN} more' if len(different) > SHOWN else ''}. Give the "
            "same config.model, but for its cut into modules and its dtype"
        )
    leaves = [
        one if n in new else np.asarray(theirs).astype(one.dtype)
        for n, (theirs, one) in enumerate(zip(there, here, strict=True))
    ]
    variables = _drawn(network, frame, key, jax.tree.unflatten(jax.tree.structure(ours), leaves))
    note = f"Starts from {other.workdir}, step {other.step}" + (f"; {why}" if new else "")
    return Start(starting_with(network, *variables), f"{note}.")


def check_other(workdir: str, task: str, own: Path) -> ConfigDict:
    """The config of a run to start from.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is this run, or one with another task.
    """
    path = Path(workdir).expanduser()
    if path.resolve() == own.resolve():
        raise ValueError(
            f"init_from={workdir} is the workdir of this run, which goes on by itself: give another"
        )
    config = workdirs.read(path)
    if config.task != task:
        raise ValueError(
            f"init_from={workdir} is a run with task={config.task!r}, this one has {task!r}: give "
            "a run with the same task"
        )
    return config


def _names(variables: tuple[tuple, tuple]) -> Iterator[str]:
    """The leaves' names, which do not depend on the cut: by their order, without the modules."""
    for kind, tree in zip(("parameter", "state"), variables, strict=True):
        layer, seen = -1, None
        for path, _ in jax.tree.leaves_with_path(tree):
            place = [key for key in path if isinstance(key, jax.tree_util.SequenceKey)]
            if place != seen:  # Another layer.
                layer, seen = layer + 1, place
            inner = [str(getattr(key, "key", key)) for key in path if key not in place]
            yield f"{kind} {layer} {'/'.join(inner)}"


def _fields(there: ConfigDict, here: ConfigDict) -> Sequence[str]:
    return [
        f"model.{name} was {there.get(name)!r} there and is {here.get(name)!r}"
        for name in sorted({*there, *here} - {"cut", "dtype", "weights"})
        if there.get(name) != here.get(name)
    ]


def _drawn(
    network: Network, frame: jax.ShapeDtypeStruct, key: jax.Array, variables: Any
) -> tuple[tuple, tuple]:
    """The variables in host memory, with numbers where there are only shapes."""
    leaves, structure = jax.tree.flatten(variables)
    new = [n for n, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    @jax.jit
    def draw(key):
        drawn = jax.tree.leaves(network.init(key, frame))
        return [drawn[n] for n in new]

    for n, one in zip(new, draw(key) if new else [], strict=True):
        leaves[n] = one
    return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])
