"""What a forward pass keeps for a backward pass that comes later: its input, or its residuals.

And maybe its weights, where they change between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sideways_jax.tools.programs import Program, dependent, evaluate, inline_calls
from sideways_jax.tools.trees import PyTree


class Passes(NamedTuple):
    """The two passes of a function, apart in time."""

    # forward(params, state, x, context) -> (result, aux, kept)
    forward: Callable[..., tuple[PyTree, PyTree, PyTree]]
    # backward(params, kept, context, cotangent of the result) -> (grads, cotangent of x)
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
        keep the residuals of its vjp. What is computed from parameters alone, such as a transposed
        kernel, is not kept either, but computed again: where parameters have changed in the
        meantime, of those of now.
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
            residuals = _residuals(linearised, (params, state, x, context), leaves)
            found["residuals"] = residuals
            return result, aux, [v for v, own in zip(leaves, residuals.kept, strict=True) if own]

        def backward(params: PyTree, kept: PyTree, context: PyTree, cotangent: PyTree) -> tuple:
            if not found:
                jax.eval_shape(forward, *shapes)
            leaves = found["residuals"].all_of(params, kept, context)
            return jax.tree.unflatten(found["structure"], leaves)(cotangent)

    return Passes(forward, backward, shapes)


class _Residuals(NamedTuple):
    """The residuals of a vjp, and where the backward pass has each of them from."""

    program: Program  # that computes all of them
    by_call: list[bool]  # whether more than parameters goes into it
    of_context: list[int | None]  # its number among the leaves of the context, if it is one

    @property
    def kept(self) -> list[bool]:
        """Which of them are kept."""
        return [own and k is None for own, k in zip(self.by_call, self.of_context, strict=True)]

    def all_of(self, params: PyTree, kept: PyTree, context: PyTree) -> list[jax.Array]:
        """All residuals, by what is kept, and by parameters and context of now."""
        leaves = jax.tree.leaves(params)
        values = dict(zip(self.program.inputs[: len(leaves)], leaves, strict=True))
        wanted = [v for v, own in zip(self.program.outputs, self.by_call, strict=True) if not own]
        computed, kept = iter(evaluate(self.program, values, wanted)), iter(kept)
        given = jax.tree.leaves(context)
        return [
            next(computed) if not own else next(kept) if k is None else given[k]
            for own, k in zip(self.by_call, self.of_context, strict=True)
        ]


def _residuals(
    linearised: Callable[..., tuple], arguments: tuple, leaves: list[jax.Array]
) -> _Residuals:
    """The residuals, whose values are `leaves`, of a vjp at `(params, state, x, context)`."""

    def leaves_of(*arguments: PyTree) -> list:
        return jax.tree.leaves(linearised(*arguments)[1])

    program = inline_calls(jax.make_jaxpr(leaves_of)(*arguments))
    others = program.inputs[len(jax.tree.leaves(arguments[0])) :]
    given = jax.tree.leaves(arguments[3])
    of_context = [next((k for k, v in enumerate(given) if v is leaf), None) for leaf in leaves]
    return _Residuals(program, dependent(program, others), of_context)


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
