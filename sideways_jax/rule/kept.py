"""What a forward pass keeps for a backward pass that comes later: its input, or its residuals.

And maybe its weights, where they change between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sideways_jax.tools.trees import PyTree


class Passes(NamedTuple):
    """The two passes of a function, apart in time."""

    # forward(params, state, x, context) -> (result, aux, kept)
    forward: Callable[..., tuple[PyTree, PyTree, PyTree]]
    # backward(params, kept, context, cotangent of the result) -> (grads, cotangent of x); where
    # residuals are kept, for a forward pass that has been traced.
    backward: Callable[..., tuple[PyTree, PyTree]]
    shapes: tuple[PyTree, PyTree, PyTree, PyTree]  # of the arguments of `forward`

    @property
    def kept(self) -> PyTree:
        """Shapes of what is kept; it traces the forward pass."""
        return jax.eval_shape(self.forward, *self.shapes)[2]


def passes(
    function: Callable[..., tuple[PyTree, PyTree]],
    shapes: tuple[PyTree, PyTree, PyTree, PyTree],
    *,
    recompute: bool,
) -> Passes:
    """Forward and backward pass of a function, which is differentiated in `params` and `x`.

    Args:
      function: `function(params, state, x, context) -> (result, aux)`. `context` is what both
        passes are given: it is not kept.
      shapes: of these four arguments.
      recompute: keep `state` and `x`, and run the function again for the backward pass; otherwise
        keep the residuals of its vjp. Parameters among the residuals are not kept either: where
        they have changed in the meantime, the backward pass takes those of now.
    """

    def linearised(params: PyTree, state: PyTree, x: PyTree, context: PyTree) -> tuple:
        return jax.vjp(lambda p, x: function(p, state, x, context), params, x, has_aux=True)

    if recompute:

        def forward(params: PyTree, state: PyTree, x: PyTree, context: PyTree) -> tuple:
            return *function(params, state, x, context), (state, x)

        def backward(params: PyTree, kept: PyTree, context: PyTree, cotangent: PyTree) -> tuple:
            state, x = kept
            _, vjp, _ = linearised(params, state, x, context)
            return vjp(cotangent)

    else:
        found: dict[str, Any] = {}

        def forward(params: PyTree, state: PyTree, x: PyTree, context: PyTree) -> tuple:
            result, vjp, aux = linearised(params, state, x, context)
            leaves, found["structure"] = jax.tree.flatten(vjp)
            known = jax.tree.leaves((params, context))
            where = [next((k for k, v in enumerate(known) if v is leaf), None) for leaf in leaves]
            found["where"] = where
            return result, aux, [v for v, k in zip(leaves, where, strict=True) if k is None]

        def backward(params: PyTree, kept: PyTree, context: PyTree, cotangent: PyTree) -> tuple:
            known = jax.tree.leaves((params, context))
            kept = iter(kept)
            leaves = [next(kept) if k is None else known[k] for k in found["where"]]
            return jax.tree.unflatten(found["structure"], leaves)(cotangent)

    return Passes(forward, backward, shapes)


class Stashed(NamedTuple):
    """What is kept of a forward pass, and the weights that it used."""

    params: PyTree
    kept: PyTree


def with_stashed_weights(one: Passes) -> Passes:
    """Passes of which the backward pass uses the weights of the forward pass, not those of now.

    PipeDream's weight stashing (Narayanan et al., SOSP 2019). It keeps a copy of the parameters
    beside what else is kept.
    """

    def forward(params: PyTree, state: PyTree, x: PyTree, context: PyTree) -> tuple:
        result, aux, kept = one.forward(params, state, x, context)
        return result, aux, Stashed(params, kept)

    def backward(params: PyTree, kept: Stashed, context: PyTree, cotangent: PyTree) -> tuple:
        del params
        return one.backward(kept.params, kept.kept, context, cotangent)

    return Passes(forward, backward, one.shapes)
