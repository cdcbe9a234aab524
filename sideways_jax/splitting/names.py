"""The leaves of a pytree by their names, and pytrees of some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from sideways_jax.tools.trees import PyTree

Name = tuple[str, ...]  # the path to a leaf


def names_of(tree: PyTree) -> tuple[Name, ...]:
    """The name of every leaf.

    >>> names_of({"dense": {"kernel": 1, "bias": 2}, "scales": [3]})
    (('dense', 'bias'), ('dense', 'kernel'), ('scales', '0'))
    """
    return tuple(
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("value",)
        for path, _ in jax.tree.leaves_with_path(tree)
    )


def written(name: Name) -> str:
    """A name in one string.

    >>> written(("dense", "kernel"))
    'dense/kernel'
    """
    return "/".join(name)


def nested(names: Iterable[Name], values: Iterable[Any]) -> dict:
    """Nested dictionaries with these values at these names.

    >>> nested([("dense", "kernel"), ("scales", "0")], [1, 3])
    {'dense': {'kernel': 1}, 'scales': {'0': 3}}
    """
    tree: dict = {}
    for name, value in zip(names, values, strict=True):
        inner = tree
        for part in name[:-1]:
            inner = inner.setdefault(part, {})
        inner[name[-1]] = value
    return tree


def values_at(tree: dict, names: Sequence[Name], what: str) -> list:
    """The values at these names; ValueError, which names the first, if some are missing."""
    values = []
    for name in names:
        value: Any = tree
        for part in name:
            if not isinstance(value, dict) or part not in value:
                raise ValueError(
                    f"{what} {written(name)!r} is missing: give what `init` of the network that "
                    "`split` made gives, or what `split` returned"
                )
            value = value[part]
        values.append(value)
    return values
