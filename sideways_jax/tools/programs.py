"""Traced functions as lists of equations, and how to compute a part of one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sideways_jax.tools.jaxprs import body_of, is_call, scan_sizes
from sideways_jax.tools.keys import is_key

Atom = core.Var | core.Literal


def shape_of_variable(v: Atom) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a variable that holds an array."""
    aval: Any = v.aval  # Not all abstract values have them.
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


class Program(NamedTuple):
    """A traced function as a list of equations, without calls inside."""

    inputs: list[core.Var]
    equations: list[core.JaxprEqn]
    outputs: list[Atom]
    constants: dict[core.Var, jax.Array]  # what the function closes over
    jaxpr: core.Jaxpr  # before inlining; `evaluate` takes its debugging information


def inline_calls(closed: core.ClosedJaxpr, *, derivatives: bool = True) -> Program:
    """A program in which jitted, checkpointed and custom-derivative calls are inlined.

    Variables are renamed; nothing is traced again. Loops and conditionals stay as they are.

    Args:
      closed: a traced function.
      derivatives: whether checkpoints and calls with derivatives of their own are inlined, too. The
        derivatives of what is computed from the result would be others.
    """
    new_variable = core.gensym()
    equations: list[core.JaxprEqn] = []
    constants: dict[core.Var, jax.Array] = {}

    def run(callee, arguments: Sequence[Atom]) -> list[Atom]:
        jaxpr = getattr(callee, "jaxpr", callee)
        names = dict(zip(jaxpr.invars, arguments, strict=True))
        for v, value in zip(jaxpr.constvars, getattr(callee, "consts", ()), strict=True):
            names[v] = new_variable(v.aval)
            constants[names[v]] = value

        def read(v):
            return v if isinstance(v, core.Literal) else names[v]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            inner = _callee(eqn) if derivatives or is_call(eqn) else None
            if inner is not None:
                outputs = run(inner, inputs)
            else:
                outputs = [new_variable(v.aval) for v in eqn.outvars]
                equations.append(eqn.replace(invars=inputs, outvars=outputs))
            names |= zip(eqn.outvars, outputs, strict=True)
        return [read(v) for v in jaxpr.outvars]

    inputs = [new_variable(v.aval) for v in closed.jaxpr.invars]
    outputs = run(closed, inputs)
    return Program(inputs, equations, outputs, constants, closed.jaxpr)


_CALLS = ("jit", "pjit", "closed_call", "core_call", "eval_jaxpr", "checkpoint", "remat2")


def _callee(eqn: core.JaxprEqn):
    """The jaxpr that an equation calls; None if it is no call."""
    if eqn.primitive.name in _CALLS:
        return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        return eqn.params.get("call_jaxpr")
    return None


def has_primitive(equations: Sequence[core.JaxprEqn], name: str) -> bool:
    """Whether an equation, also inside loops, conditionals and calls, has this primitive."""
    return any(
        eqn.primitive.name == name
        or any(has_primitive(inner.eqns, name) for inner in core.jaxprs_in_params(eqn.params))
        for eqn in equations
    )


def dependent(program: Program, on: Collection[core.Var]) -> list[bool]:
    """Which outputs of a program are computed from some of its inputs.

    Loops over axes (`lax.scan`) are followed; whatever a conditional or another loop gives counts
    as computed from all that goes in.
    """
    return _dependent(program.equations, set(on), program.outputs)


def _dependent(equations: Sequence[core.JaxprEqn], found: set, outputs: Sequence) -> list[bool]:
    def among(atoms: Sequence) -> list[bool]:
        return [isinstance(v, core.Var) and v in found for v in atoms]

    for eqn in equations:
        reached = among(eqn.invars)
        if any(reached):
            inner = _callee(eqn)
            if eqn.primitive.name == "scan":
                after = _of_scan(eqn, reached)
            elif inner is not None:
                body = getattr(inner, "jaxpr", inner)
                marked = {v for v, one in zip(body.invars, reached, strict=True) if one}
                after = _dependent(body.eqns, marked, body.outvars)
            else:
                after = [True] * len(eqn.outvars)
            found.update(v for v, one in zip(eqn.outvars, after, strict=True) if one)
    return among(outputs)


def _of_scan(eqn: core.JaxprEqn, reached: Sequence[bool]) -> list[bool]:
    """Likewise of a scan: what one step makes dependent the next one reads."""
    body = body_of(eqn).jaxpr
    num_consts, num_carry = scan_sizes(eqn)
    marked = list(reached)
    while True:
        inside = {v for v, one in zip(body.invars, marked, strict=True) if one}
        outputs = _dependent(body.eqns, inside, body.outvars)
        carry = slice(num_consts, num_consts + num_carry)
        more = [a or b for a, b in zip(marked[carry], outputs[:num_carry], strict=True)]
        if more == marked[carry]:
            return outputs
        marked[carry] = more


def part(
    program: Program, known: Collection[core.Var], wanted: Sequence[Atom]
) -> tuple[list[core.JaxprEqn], list[core.Var]]:
    """The equations that compute `wanted` from `known`, and which of `known` they use."""
    missing: set[core.Var] = set()
    used: dict[core.Var, None] = {}

    def need(atoms):
        for v in atoms:
            if isinstance(v, core.Var):
                if v in known:
                    used[v] = None
                else:
                    missing.add(v)

    need(wanted)
    equations = []
    for eqn in reversed(program.equations):
        if not missing.isdisjoint(eqn.outvars):
            missing.difference_update(eqn.outvars)
            equations.append(eqn)
            need(eqn.invars)
    if missing:
        raise KeyError(f"{len(missing)} values cannot be computed from those that are given")
    return equations[::-1], list(used)


def evaluate(
    program: Program, values: dict[core.Var, jax.Array], wanted: Sequence[Atom]
) -> list[jax.Array]:
    """Computes `wanted` from these values, of inputs or of intermediate variables."""
    known = program.constants | values
    equations, used = part(program, known, wanted)
    jaxpr = program.jaxpr.replace(constvars=[], invars=used, outvars=list(wanted), eqns=equations)
    results = jax.core.eval_jaxpr(jaxpr, [], *(known[v] for v in used))
    return [
        jnp.asarray(x, shape_of_variable(v).dtype) if isinstance(v, core.Literal) else x
        for v, x in zip(wanted, results, strict=True)
    ]


def same(one: core.ClosedJaxpr, other: core.ClosedJaxpr) -> bool:
    """Whether two traced functions compute the same, by the same equations in the same order.

    Names do not matter and, without effects, equations that no result depends on. Different objects
    as parameters of an equation, such as functions, count as different.
    """
    return _description(one) == _description(other)


def _description(closed: core.ClosedJaxpr) -> list:
    program = inline_calls(closed)
    numbers: dict[core.Var, int] = {v: k for k, v in enumerate(program.inputs)}

    def described(v: Atom) -> tuple:
        if isinstance(v, core.Literal):
            return str(v.aval), _described(v.val)
        if v in program.constants:
            return str(v.aval), _described(program.constants[v])
        return str(v.aval), numbers.setdefault(v, len(numbers))

    equations = program.equations
    if not closed.effects:
        equations, _ = part(program, {*program.inputs, *program.constants}, program.outputs)
    lines: list = [
        (
            eqn.primitive.name,
            [described(v) for v in eqn.invars],
            [described(v) for v in eqn.outvars],
            {name: _described(value) for name, value in eqn.params.items()},
        )
        for eqn in equations
    ]
    return [*lines, [described(v) for v in (*program.inputs, *program.outputs)]]


def _described(value: Any) -> Any:
    """A constant, or a parameter of an equation, in a form that can be compared."""
    if isinstance(value, core.Jaxpr):
        value = core.ClosedJaxpr(value, ())
    if isinstance(value, core.ClosedJaxpr):
        return _description(value)
    if isinstance(value, tuple | list):
        return [_described(one) for one in value]
    if isinstance(value, jax.core.Tracer):
        return id(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array: Any = value
        numbers = np.asarray(jax.random.key_data(array) if is_key(array) else array)
        return str(array.dtype), numbers.shape, numbers.tobytes()
    return repr(value)
