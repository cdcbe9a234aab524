"""Weights of a file in the layout of Hugging Face's library `transformers`, for the same network.

The file's arrays are PyTorch's: a kernel of a convolution is `[O, I, h, w]` there and
`[h, w, I, O]` here, one of a linear layer `[O, I]` there and `[I, O]` here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.tools.trees import PyTree

HEAD = "linear"  # of the last layer: the only part that depends on the number of classes
SHOWN = 5  # names, in a message
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Layout(NamedTuple):
    """The names of a network's arrays in a file.

    Attributes:
      base: what all names but those of the head begin with; a file without a head leaves it out.
      layers: what the names of every layer of ours begin with.
      names: of our submodules and parameters.
      of_layer: the same, for layers whose submodules have other names in the file.
      ignored: ends of names that are in the file and have no meaning here.
    """

    base: str
    layers: Sequence[str]
    names: Mapping[str, str]
    of_layer: Mapping[int, Mapping[str, str]] = {}
    ignored: tuple[str, ...] = ()


class Fitted(NamedTuple):
    """The weights of a file, as a network has them."""

    params: tuple
    state: tuple
    classes: int | None  # of the file, where the head is not taken: it is for other classes
    new_head: bool  # whether the head is not of the file


class _Wanted(NamedTuple):
    name: str  # in the file
    leaf: Any
    is_head: bool

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of the file's array, in the order of ours."""
        return {4: (2, 3, 1, 0), 2: (1, 0)}.get(self.leaf.ndim, tuple(range(self.leaf.ndim)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the file's array."""
        shape = [0] * self.leaf.ndim
        for ours, theirs in enumerate(self.order):
            shape[theirs] = self.leaf.shape[ours]
        return tuple(shape)


def fit(layout: Layout, tensors: Mapping[str, Any], params: tuple, state: tuple) -> Fitted:
    """Puts the arrays of a file into their places.

    Args:
      layout: of this network.
      tensors: the arrays of the file, by their names.
      params, state: of the network, however it is cut into modules. What the file does not have for
        this number of classes, the head, stays as it is.

    Raises:
      ValueError: it names what is missing, what is not known, and what has another shape.
    """
    tensors = _with_base(tensors, layout.base)
    wanted = [list(_wanted(layout, tree)) for tree in (params, state)]
    everything = {one.name: one for part in wanted for one in part}
    head = [one for one in everything.values() if one.is_head]
    there = [tensors[one.name] for one in head if one.name in tensors]
    new_head = not there or any(
        len(tensors[one.name]) != one.shape[0] for one in head if one.name in tensors
    )
    left_out = {one.name for one in head} if new_head else set()
    _check(layout, tensors, everything, left_out)

    def filled(tree: PyTree, part: Sequence[_Wanted]) -> PyTree:
        leaves = [
            one.leaf
            if one.name in left_out
            else jnp.asarray(tensors[one.name]).transpose(one.order).astype(one.leaf.dtype)
            for one in part
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    return Fitted(
        filled(params, wanted[0]),
        filled(state, wanted[1]),
        len(there[0]) if there and new_head else None,
        new_head,
    )


def num_layers(params: tuple) -> int:
    """How many layers were cut into modules."""
    return len(_layers(params))


def _layers(tree: tuple) -> list[PyTree]:
    return [
        layer for module in tree for layer in (module if isinstance(module, tuple) else (module,))
    ]


def _with_base(tensors: Mapping[str, Any], base: str) -> Mapping[str, Any]:
    if any(name.startswith(f"{base}.") for name in tensors):
        return tensors
    return {f"{base}.{name}": tensor for name, tensor in tensors.items()}


def _wanted(layout: Layout, tree: tuple) -> Iterator[_Wanted]:
    """The leaves of parameters or of states, in their order."""
    layers = _layers(tree)
    for n, layer in enumerate(layers):
        names = {**_LEAVES, **layout.names, **layout.of_layer.get(n, {})}
        for path, leaf in jax.tree.leaves_with_path(layer):
            parts = [key.key for key in path if key.key != "batch_stats"]
            is_head = n == len(layers) - 1 and parts[0] == HEAD
            # The head's own normalisation is named from the top.
            prefix = layout.layers[n]
            name = ".".join(filter(None, (prefix, *(names[part] for part in parts))))
            yield _Wanted(name, leaf, is_head)


def _check(
    layout: Layout, tensors: Mapping[str, Any], wanted: Mapping[str, _Wanted], left_out: set[str]
) -> None:
    missing = [name for name in wanted if name not in tensors and name not in left_out]
    unknown = [
        name for name in tensors if name not in wanted and not name.endswith(layout.ignored or "\n")
    ]
    shapes = [
        f"{name} is {list(tensors[name].shape)} and has to be {list(one.shape)}"
        for name, one in wanted.items()
        if name in tensors
        and (
            tensors[name].shape[1:] != one.shape[1:]
            if name in left_out
            else tensors[name].shape != one.shape
        )
    ]
    problems = {"missing": missing, "not known": unknown, "of another shape": shapes}
    if found := [f"{what}: {_listed(names)}" for what, names in problems.items() if names]:
        raise ValueError(
            f"the file is not of this network. In the file, {'; '.join(found)}. Give the file of "
            "the same network, or the network that the file is of, with the same sizes; positions "
            "of tokens are for one size of frames"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
