"""Whether two functions compute the same, by their traced programs; nothing is compiled or run."""

import re

import jax
import numpy as np
from jax.extend import core

from sideways_jax.tools.programs import inline_calls

_ADDRESS = re.compile(r"0x[0-9a-f]+")


def result_names(function, *arguments):
    """A name for every leaf of the result, that says how it is computed from the arguments.

    Equal names stand for equal programs: the same equations, with the same parameters, of inputs
    with equal names. The order of equations does not count, nor that of the terms of a sum of
    cotangents, nor how often something is computed.
    """
    program = inline_calls(jax.make_jaxpr(function)(*arguments), derivatives=False)
    names = {v: hash(("argument", n)) for n, v in enumerate(program.inputs)}
    for v, value in program.constants.items():
        names[v] = hash((str(value.dtype), value.shape, np.asarray(value).tobytes()))
    terms: dict = {}  # of those names that are sums

    def name_of(atom):
        return names[atom] if isinstance(atom, core.Var) else hash(str(atom))

    for eqn in program.equations:
        inputs = [name_of(v) for v in eqn.invars]
        kind = eqn.primitive.name
        if kind == "convert_element_type" and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype:
            names[eqn.outvars[0]] = inputs[0]  # Only how it is promoted changes.
            continue
        if kind == "add_any":
            inputs = sorted(term for one in inputs for term in terms.get(one, [one]))
        parameters = sorted((key, _ADDRESS.sub("", str(x))) for key, x in eqn.params.items())
        for n, v in enumerate(eqn.outvars):
            names[v] = hash((kind, str(parameters), tuple(inputs), n))
            if kind == "add_any":
                terms[names[v]] = inputs
    return [name_of(v) for v in program.outputs]
