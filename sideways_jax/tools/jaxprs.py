"""Equations of traced programs: what they are, and what is inside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
from jax.extend import core


def inline_jit(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same program without jitted calls inside, which would tie unrelated values together."""

    def run(jaxpr, consts, args):
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= zip(jaxpr.invars, args, strict=True)

        def read(v):
            return v.val if isinstance(v, core.Literal) else values[v]

        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("jit", "pjit", "closed_call"):
                inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
                outvars = eqn.outvars
                outputs = run(inner.jaxpr, inner.consts, [read(v) for v in eqn.invars])
            else:
                invars = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, core.Var)))
                outvars = [v for v in eqn.outvars if not isinstance(v, core.DropVar)]
                alone = jaxpr.replace(constvars=[], invars=invars, outvars=outvars, eqns=[eqn])
                outputs = jax.core.eval_jaxpr(alone, [], *map(read, invars))
            values |= zip(outvars, outputs, strict=True)
        return [read(v) for v in jaxpr.outvars]

    if not any("jit" in eqn.primitive.name or "call" in eqn.primitive.name for eqn in closed.eqns):
        return closed
    return jax.make_jaxpr(lambda *args: run(closed.jaxpr, closed.consts, args))(*closed.in_avals)


def evaluate(jaxpr: core.Jaxpr, eqn: core.JaxprEqn, values: Sequence) -> dict[core.Var, jax.Array]:
    """Computes one equation from the values of `eqn.invars`; gives the values of its outputs."""
    read = {v: x for v, x in zip(eqn.invars, values, strict=True) if isinstance(v, core.Var)}
    outvars = [v for v in eqn.outvars if not isinstance(v, core.DropVar)]
    alone = jaxpr.replace(constvars=[], invars=list(read), outvars=outvars, eqns=[eqn])
    return dict(zip(outvars, jax.core.eval_jaxpr(alone, [], *read.values()), strict=True))


def body_of(eqn: core.JaxprEqn) -> core.ClosedJaxpr:
    """The program inside a call, a checkpoint or a loop."""
    body = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    # A checkpoint has a jaxpr without constants.
    return body if hasattr(body, "consts") else core.ClosedJaxpr(body, ())


def is_call(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a call: it runs the program inside it and does nothing else."""
    return eqn.primitive.name in ("jit", "pjit", "closed_call")


def is_checkpoint(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is `jax.checkpoint`."""
    return eqn.primitive.name in ("checkpoint", "remat", "remat2")


def all_equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations of a program and of all programs inside them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from all_equations(inner)


def scan_sizes(eqn: core.JaxprEqn) -> tuple[int, int]:
    """How many of the inputs of a `lax.scan` are constants, and how many are carried."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    constants, carry, _ = eqn.params["ft_in"].unpack()  # From jax 0.11 on.
    return len(constants), len(carry)
