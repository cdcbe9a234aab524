"""How much an equation of a traced program costs: its floating-point operations, estimated."""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core

from sideways_jax.tools.jaxprs import body_of

# What only moves numbers.
_MOVES = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "gather"),
    *("name", "pad", "reshape", "rev", "slice", "squeeze", "transpose"),
}


def operations(eqn: core.JaxprEqn) -> float:
    """The operations of one equation, in the forward pass.

    Products count exactly, a loop as often as it runs (a `while` once), a conditional as its most
    expensive branch, what only moves numbers nothing, and everything else one for every element.
    """
    name = eqn.primitive.name
    if name in _MOVES:
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left = _shape(eqn.invars[0])
        return 2.0 * _size(eqn.outvars[0]) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return 2.0 * _size(eqn.outvars[0]) * _inputs_of_a_pixel(eqn)
    if name == "cond":
        return max((_inside(branch) for branch in eqn.params["branches"]), default=0.0)
    if name == "scan":
        return eqn.params["length"] * _inside(body_of(eqn))
    if name == "while":
        return _inside(eqn.params["body_jaxpr"])
    inner = list(core.jaxprs_in_params(eqn.params))
    if inner:
        return sum(_inside(jaxpr) for jaxpr in inner[:1])  # A rule for derivatives may follow.
    return float(max(map(_size, [*eqn.invars, *eqn.outvars]), default=0))


def _inside(callee: Any) -> float:
    jaxpr = getattr(callee, "jaxpr", callee)
    return sum(map(operations, jaxpr.eqns), start=0.0)


def _inputs_of_a_pixel(eqn: core.JaxprEqn) -> int:
    """How many numbers of the input a number of a convolution's output is made from."""
    kernel = _shape(eqn.invars[1])
    _, channels, *window = eqn.params["dimension_numbers"].rhs_spec
    return kernel[channels] * math.prod(kernel[axis] for axis in window)


def _shape(v: Any) -> tuple[int, ...]:
    return tuple(getattr(v.aval, "shape", ()))


def _size(v: Any) -> int:
    return math.prod(_shape(v))
