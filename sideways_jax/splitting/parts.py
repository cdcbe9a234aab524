"""Which module has which leaves of a model's parameters and state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax.network.checks import check_tuples
from sideways_jax.splitting.names import Name, names_of, nested, values_at, written
from sideways_jax.tools.trees import PyTree


class Tree(NamedTuple):
    """A pytree that is divided among modules.

    Attributes:
      what: "parameter" or "state", for messages.
      names: of its leaves.
      shapes: of its leaves.
      structure: its structure.
      owner: of every leaf, the module that has it.
    """

    what: str
    names: tuple[Name, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any
    owner: tuple[int, ...]

    def of_module(self, i: int) -> list[int]:
        """The numbers of the leaves of module i."""
        return [n for n, owner in enumerate(self.owner) if owner == i]

    def part(self, i: int, leaves: Sequence) -> dict:
        """The pytree of module i: nested dictionaries, with the names of the original."""
        numbers = self.of_module(i)
        return nested([self.names[n] for n in numbers], [leaves[n] for n in numbers])

    def leaves(self, i: int, part: dict) -> list:
        """The leaves of module i, in the order of the original.

        Raises:
          ValueError: if one is missing, or has another shape or dtype than the original's.
        """
        numbers = self.of_module(i)
        values = values_at(part, [self.names[n] for n in numbers], self.what)
        for n, value in zip(numbers, values, strict=True):
            wanted = self.shapes[n]
            if (jnp.shape(value), jnp.result_type(value)) != (wanted.shape, wanted.dtype):
                raise ValueError(
                    f"{self.what} {written(self.names[n])!r} is {jnp.result_type(value)}"
                    f"{list(jnp.shape(value))}, but the model was cut with {wanted.dtype}"
                    f"{list(wanted.shape)}: cut it again, split(model, frame, variables=...)"
                )
        return values


def tree_of(what: str, tree: PyTree, owner: np.ndarray) -> Tree:
    """A pytree of shapes, and the module of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return Tree(what, names_of(tree), tuple(leaves), structure, tuple(int(i) for i in owner))


class Parts(NamedTuple):
    """How parameters and state are divided.

    Attributes:
      depth: D.
      params, state: of the original.
      variables: from both to what the original calls its variables.
    """

    depth: int
    params: Tree
    state: Tree
    variables: Callable[[PyTree, PyTree], PyTree]

    def divide(self, params: PyTree, state: PyTree) -> tuple[tuple, tuple]:
        """By module; ValueError for other structures than those of the original."""
        divided = []
        for tree, values in ((self.params, params), (self.state, state)):
            leaves, structure = jax.tree.flatten(values)
            if names_of(values) != tree.names:
                raise ValueError(
                    f"{tree.what} of another structure, {structure}: the model that was cut has "
                    f"{tree.structure}"
                )
            divided.append(tuple(tree.part(i, leaves) for i in range(self.depth)))
        return divided[0], divided[1]

    def merge(self, params: tuple, state: tuple) -> PyTree:
        """The variables of the original."""
        check_tuples(self.depth, params, state)
        whole = []
        for tree, parts in ((self.params, params), (self.state, state)):
            leaves: list = [None] * len(tree.names)
            for i, part in enumerate(parts):
                for n, value in zip(tree.of_module(i), tree.leaves(i, part), strict=True):
                    leaves[n] = value
            whole.append(jax.tree.unflatten(tree.structure, leaves))
        return self.variables(*whole)
