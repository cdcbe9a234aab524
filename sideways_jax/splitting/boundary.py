"""Marks in a model where it is to be cut."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from sideways_jax.tools.jaxprs import all_equations
from sideways_jax.tools.trees import PyTree

# The identity that JAX has for values with a name goes through every transformation.
_NAME = "sideways_jax.boundary {} of {}"
_LAST = re.compile(r"sideways_jax\.boundary (\d+) of \1$")  # the last array of a pytree


def boundary(x: PyTree) -> PyTree:
    """Marks where `split` cuts a model: what comes after is in the next module.

    It returns `x`, and does nothing else, so that the model can be used without `split` too. All
    values that are needed further up travel to the next module, not `x` alone.

    Args:
      x: any value, or pytree, of the model; not inside a loop, a conditional, or `jax.checkpoint`.

    >>> boundary({"x": jax.numpy.ones(2)})
    {'x': Array([1., 1.], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(x)
    if not leaves:
        raise ValueError(f"boundary({x!r}) has no array to mark: give it the activation")
    count = len(leaves)
    marked = [checkpoint_name(leaf, _NAME.format(n + 1, count)) for n, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, marked)


def marks(equations: Sequence[core.JaxprEqn]) -> list[int]:
    """The numbers of those equations that end a call of `boundary`.

    Raises:
      ValueError: for a call inside a loop, or another equation that stays in one piece.
    """
    found = []
    for n, eqn in enumerate(equations):
        if _ends(eqn):
            found.append(n)
        elif any(_ends(e) for jaxpr in core.jaxprs_in_params(eqn.params)
                 for e in all_equations(jaxpr)):  # fmt: skip
            raise ValueError(
                f"boundary is called inside {eqn.primitive.name!r}, which is one equation of the "
                "traced model and stays in one piece: call boundary outside of it, or unroll the "
                "loop (a Python loop over layers instead of nn.scan, no nn.remat around it)"
            )
    return found


def _ends(eqn: core.JaxprEqn) -> bool:
    return bool(_LAST.match(str(eqn.params.get("name", ""))))
