"""Sums over frames in float32, where the program that JAX differentiates would use less.

With all frames at once the sum over frames is inside the vjp of a module: JAX transposes the use of
a parameter by every frame into a sum, in the dtype in which the parameter is used. A sum of
bfloat16 numbers stops growing at 256 times a term, where the compiler adds in that type (XLA's does
on CPU), and one of float16 numbers ends at 65,504. So the program is run with wider sums:

* those over an axis (`reduce_sum`) and of `scatter-add`, wherever they are, in float32;
* those of products and convolutions are float32 inside, and rounded to bfloat16 once, on every
  backend; the ones of narrower range, float16 say, are made in float32 where they go to a gradient;
* what moves, adds or scales such sums on their way to a gradient keeps them float32.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sideways_jax.tools.jaxprs import (
    all_equations,
    body_of,
    evaluate,
    inline_jit,
    is_checkpoint,
    scan_sizes,
)
from sideways_jax.tools.trees import PyTree, wide

_PRODUCTS = ("dot_general", "conv_general_dilated")
_MOVES = (
    "copy", "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "slice",
    "pad", "concatenate", "dynamic_slice", "dynamic_update_slice", "convert_element_type",
)  # fmt: skip
_LINEAR = ("add", "add_any", "sub", "neg", "mul", "div", "select_n", *_MOVES)


def is_narrow(dtype) -> bool:
    """Whether it is a float with fewer bits than float32."""
    return wide(dtype) != dtype


def has_narrow(jaxpr: core.Jaxpr) -> bool:
    """Whether any value of a program is a narrow float."""
    variables = [v for eqn in all_equations(jaxpr) for v in (*eqn.invars, *eqn.outvars)]
    return any(map(_is_narrow, (*jaxpr.invars, *variables)))


def with_wide_sums(pull_back: Callable[[PyTree], tuple[PyTree, PyTree]]) -> Callable:
    """`pull_back(cotangent) -> (grads, cotangent of x)` with sums in float32; so are the grads."""

    def run(cotangent):
        def traceable(cotangent):
            grads, down = pull_back(cotangent)
            return grads, without_integers(down)

        closed, shape = jax.make_jaxpr(traceable, return_shape=True)(cotangent)
        num_grads = len(jax.tree.leaves(shape[0]))
        wanted = [n < num_grads for n in range(len(closed.jaxpr.outvars))]
        out = _run(inline_jit(closed), jax.tree.leaves(cotangent), wanted)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def without_integers(cotangent: PyTree) -> PyTree:
    """None for what has no cotangent, such as a frame of bytes: JAX has a type for it, `float0`,
    that no program can return.
    """
    return jax.tree.map(lambda x: None if x.dtype == jax.dtypes.float0 else x, cotangent)


def _run(closed: core.ClosedJaxpr, args: Sequence, wanted_out: Sequence[bool]) -> list:
    """The outputs of a program, those that are `wanted` in wide dtypes."""
    jaxpr = closed.jaxpr
    wanted = _wanted(jaxpr, wanted_out)
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)

    def read(v):
        if not isinstance(v, core.Literal):
            return values[v]
        return jnp.asarray(v.val, _dtype(v)) if _is_narrow(v) else v.val

    for eqn in jaxpr.eqns:
        inputs = list(map(read, eqn.invars))
        name, out = eqn.primitive.name, eqn.outvars[0] if eqn.outvars else None
        is_wanted = out is not None and out in wanted
        holds_wide = any(map(_is_wider, inputs, eqn.invars))
        if (is_wanted and name in _LINEAR) or (holds_wide and name in _MOVES):
            values[out] = _linear(eqn, inputs)
        elif name == "reduce_sum" and _is_narrow(out):
            values[out] = eqn.primitive.bind(*map(_widen, inputs), **eqn.params)
        elif name == "scatter-add" and _is_narrow(out):
            values[out] = _scatter_add(eqn, inputs)
        elif name in _PRODUCTS and is_wanted and _overflows(out):
            values[out] = _product(eqn, inputs)
        else:
            values |= evaluate(jaxpr, *_with_wide_bodies(eqn, inputs, wanted))
    return [
        _widen(read(v)) if is_wanted else _as_declared(read(v), v)
        for v, is_wanted in zip(jaxpr.outvars, wanted_out, strict=True)
    ]


def _wanted(jaxpr: core.Jaxpr, wanted_out: Sequence[bool]) -> set[core.Var]:
    """The variables that go to a wanted output with no sum over an axis in between."""
    outputs = zip(jaxpr.outvars, wanted_out, strict=True)
    wanted = {v for v, is_wanted in outputs if is_wanted and isinstance(v, core.Var)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.primitive.name in _LINEAR and eqn.outvars[0] in wanted:
            wanted.update(v for v in eqn.invars if isinstance(v, core.Var))
    return wanted


def _with_wide_bodies(
    eqn: core.JaxprEqn, inputs: Sequence, wanted: set[core.Var]
) -> tuple[core.JaxprEqn, list]:
    """An equation and its inputs, with wide sums in the programs inside it, if there are any."""
    declared = list(map(_as_declared, inputs, eqn.invars))
    wanted_out = [v in wanted for v in eqn.outvars]
    if is_checkpoint(eqn):
        body = _widened(body_of(eqn), wanted_out)
        return (eqn, declared) if body.consts else (_with(eqn, jaxpr=body.jaxpr), declared)
    if eqn.primitive.name == "cond":
        branches = [_widened(branch, wanted_out) for branch in eqn.params["branches"]]
        return _with(eqn, branches=tuple(branches)), declared
    if eqn.primitive.name == "scan":
        # A sum that goes from iteration to iteration is wide on its way in, too.
        first, num_carry = scan_sizes(eqn)
        carried = {first + n for n in range(num_carry) if wanted_out[n]}
        declared = [_widen(x) if n in carried else declared[n] for n, x in enumerate(inputs)]
        return _with(eqn, jaxpr=_widened(body_of(eqn), wanted_out, carried)), declared
    return eqn, declared


def _with(eqn: core.JaxprEqn, **params) -> core.JaxprEqn:
    return eqn.replace(params={**eqn.params, **params})


def _widened(
    closed: core.ClosedJaxpr, wanted_out: Sequence[bool], wide_in: Container[int] = ()
) -> core.ClosedJaxpr:
    """A program inside another one, with wide sums; `wide_in`: inputs that come in wide dtypes."""
    if not has_narrow(closed.jaxpr):
        return closed
    inlined = inline_jit(closed)
    types = [
        jax.ShapeDtypeStruct(aval.shape, wide(aval.dtype)) if n in wide_in else aval
        for n, aval in enumerate(closed.in_avals)
    ]
    return jax.make_jaxpr(lambda *args: _run(inlined, args, wanted_out))(*types)


def _linear(eqn: core.JaxprEqn, inputs: Sequence) -> jax.Array:
    if eqn.primitive.name == "convert_element_type":
        return jax.lax.convert_element_type(inputs[0], wide(eqn.params["new_dtype"]))
    return eqn.primitive.bind(*map(_widen, inputs), **eqn.params)


def _product(eqn: core.JaxprEqn, inputs: Sequence) -> jax.Array:
    options = {**eqn.params, "preferred_element_type": wide(_dtype(eqn.outvars[0]))}
    return eqn.primitive.bind(*map(_widen, inputs), **options)


def _scatter_add(eqn: core.JaxprEqn, inputs: Sequence) -> jax.Array:
    operand, indices, updates = inputs
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    options = {name: eqn.params[name] for name in names}
    return jax.lax.scatter_add(_widen(operand), indices, _widen(updates), **options)


def _dtype(v) -> Any:
    """Of a variable; None for what has none, such as a token."""
    return getattr(v.aval, "dtype", None)


def _is_narrow(v) -> bool:
    dtype = _dtype(v)
    return dtype is not None and is_narrow(dtype)


def _overflows(v) -> bool:
    """Whether a float ends long before float32 does, as float16 does and bfloat16 does not."""
    return _is_narrow(v) and jnp.finfo(_dtype(v)).maxexp < jnp.finfo(jnp.float32).maxexp


def _is_wider(x, v) -> bool:
    return _is_narrow(v) and jnp.result_type(x) != _dtype(v)


def _widen(x):
    dtype = jnp.result_type(x)
    return jnp.asarray(x).astype(wide(dtype)) if is_narrow(dtype) else x


def _as_declared(x, v):
    """The value of a variable in the dtype that its program says."""
    return x.astype(_dtype(v)) if _is_narrow(v) else x
