"""Looking into traced programs."""

from __future__ import annotations

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
