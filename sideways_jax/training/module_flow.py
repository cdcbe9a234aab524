"""Which module the numbers in a traced function over all modules come from.

Each input is a leaf of a module, or belongs to none. One pass over the equations finds the place
of every result: the module whose arrays go into it. Single numbers of other modules, such as norms,
may go into it as well: the device of their module broadcasts ("tells") them. A number that depends
on told numbers is told one round later. If arrays of several modules go into an equation, its
result, and all that depends on it, has the place `Several`.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend import core

from sideways_jax.tools.programs import (
    Atom,
    Program,
    evaluate,
    has_primitive,
    inline_calls,
    shape_of_variable,
)


class Known(enum.Enum):
    """Places of numbers that every device can compute after it was told single numbers."""

    FREE = enum.auto()  # they come from no module
    MET = enum.auto()  # computed from single numbers of several modules
    JOINED = enum.auto()  # an array with single numbers of several modules side by side


class Several(NamedTuple):
    """The place of numbers that are computed from arrays of several modules."""

    reason: str


Place = int | Known | Several  # an int is a module


class Flow(NamedTuple):
    """Where the numbers of a program come from."""

    program: Program  # conditionals on arrays of several modules are taken apart
    places: list[Place]  # of every output
    refused: list[str | None]  # why an output cannot be where it is wanted
    homes: dict[core.Var, int]  # the module of every value that has to be told
    rounds: dict[core.Var, int]  # the round, from 1, in which it is told


def size(v: Atom) -> int:
    """How many numbers a value has."""
    return math.prod(getattr(v.aval, "shape", ()))


def follow(
    program: Program, places: Sequence[Place], wanted: Sequence[int | None] | None = None
) -> Flow:
    """The places of all outputs.

    Args:
      program: the equations.
      places: of the inputs.
      wanted: for every output, the module whose device needs it, None for all devices; a single
        number from another place is told. Without `wanted`, outputs stay at their places.
    """
    walk = _Walk(dict(zip(program.inputs, places, strict=True)))
    todo = deque(program.equations)
    equations, constants = [], dict(program.constants)
    alias: dict[core.Var, Atom] = {}

    def read(v):
        while isinstance(v, core.Var) and v in alias:
            v = alias[v]
        return v

    while todo:
        eqn = todo.popleft()
        if any(v in alias for v in eqn.invars if isinstance(v, core.Var)):
            eqn = eqn.replace(invars=[read(v) for v in eqn.invars])
        pieces = _take_apart(eqn, walk) if eqn.primitive.name == "cond" else None
        if pieces is None:
            walk.settle(eqn.outvars, eqn.invars, eqn)
            equations.append(eqn)
        else:
            constants |= pieces.constants
            alias |= zip(pieces.inputs, eqn.invars, strict=True)
            alias |= zip(eqn.outvars, pieces.outputs, strict=True)
            todo.extendleft(reversed(pieces.equations))

    outputs = [read(v) for v in program.outputs]
    found = [walk.place(v) for v in outputs]
    refused = [place.reason if isinstance(place, Several) else None for place in found]
    for k, home in enumerate(wanted or ()):
        if isinstance(found[k], int) and found[k] != home:
            if size(outputs[k]) > 1:
                reached = "all modules" if home is None else f"module {home}"
                refused[k] = f"an array of module {found[k]} reaches {reached}"
            else:
                walk.tell(outputs[k])
    program = program._replace(equations=equations, outputs=outputs, constants=constants)
    homes: dict[core.Var, Any] = {v: walk.places[v] for v in walk.rounds}  # modules, all of them
    return Flow(program, found, refused, homes, walk.rounds)


class _Walk:
    """What is known about the variables of a program after the equations so far."""

    def __init__(self, places: dict[core.Var, Place]):
        self.places = places
        self.after: dict[core.Var, int] = {}  # the round after which its own place can compute it
        self.heard: dict[core.Var, int] = {}  # the round after which all devices can compute it
        self.rounds: dict[core.Var, int] = {}  # in which it is told
        self.sources: dict[core.Var, list[core.Var]] = {}  # of single numbers

    def place(self, v: Atom) -> Place:
        return self.places.get(v, Known.FREE) if isinstance(v, core.Var) else Known.FREE

    def settle(self, results: Sequence[core.Var], atoms: Sequence[Atom], eqn: core.JaxprEqn):
        """Places the results of an equation that uses these values."""
        inputs = [v for v in atoms if isinstance(v, core.Var)]
        place = self.meet(inputs, results, eqn)
        after = 0
        for v in inputs:
            away = isinstance(self.place(v), int) and self.place(v) != place
            if away and not isinstance(place, Several):
                after = max(after, self.tell(v))
            else:
                after = max(after, self.after.get(v, 0))
        for v in results:
            self.places[v] = place
            self.after[v] = after
            self.sources[v] = inputs

    def meet(self, inputs: Sequence[Atom], results: Sequence[core.Var], eqn) -> Place:
        """The place of what is computed from these values."""
        found = [(self.place(v), size(v)) for v in inputs]
        for place, _ in found:
            if isinstance(place, Several):
                return place
        places = {place for place, _ in found}
        modules = {place for place in places if isinstance(place, int)}
        of_arrays = {place for place, n in found if isinstance(place, int) and n > 1}
        if len(of_arrays) > 1:
            name = eqn.primitive.name
            return Several(f"arrays of modules {sorted(of_arrays)} meet in {name!r}")
        if of_arrays:
            return of_arrays.pop()
        if any(size(v) > 1 for v in results):
            if len(modules) > 1 or Known.JOINED in places:
                return Known.JOINED
            if modules:
                return modules.pop()
        # A sum over modules does not belong to the module whose number was added last.
        elif len(modules) == 1 and places <= {Known.FREE, *modules}:
            return modules.pop()
        return Known.FREE if places <= {Known.FREE} else Known.MET

    def tell(self, v: core.Var) -> int:
        """Has a single number told to all devices; gives the round after which they know it.

        If it depends on told numbers, the numbers that it is computed from are told instead of it:
        a sum over modules, added one after the other, takes one round and not one per module.
        """
        if v not in self.heard:
            sources = self.sources.get(v, [])
            own = [w for w in sources if isinstance(self.place(w), int)]
            if self.after.get(v, 0) and all(size(w) == 1 for w in own):
                known = [self.after.get(w, 0) for w in sources if w not in own]
                self.heard[v] = max([*map(self.tell, own), *known])
            else:
                self.heard[v] = self.rounds[v] = self.after.get(v, 0) + 1
        return self.heard[v]


def _take_apart(eqn: core.JaxprEqn, walk: _Walk) -> Program | None:
    """A conditional as one conditional per place, or as a selection; None if it can stay."""
    if eqn.effects or eqn.params.get("branches_platforms"):
        return None
    cases = [inline_calls(branch) for branch in eqn.params["branches"]]
    index, *operands = eqn.invars
    if isinstance(index, core.Literal):
        case = cases[min(max(int(index.val), 0), len(cases) - 1)]
        unused = core.gensym()(index.aval)
        return case._replace(inputs=[unused, *case.inputs])

    by_place: dict[Place, list[int]] = {}
    uses: dict[Place, set[int]] = {}
    used_by_case = [_used_inputs(case) for case in cases]
    for k, result in enumerate(eqn.outvars):
        used = set().union(*(by_output[k] for by_output in used_by_case))
        inputs = [index, *(operands[n] for n in sorted(used))]
        place = walk.meet([v for v in inputs if isinstance(v, core.Var)], [result], eqn)
        by_place.setdefault(place, []).append(k)
        uses.setdefault(place, set()).update(used)
    mixed = any(isinstance(place, Several) for place in by_place)
    if len(by_place) == 1 and not mixed:
        return None
    # A selection runs all cases, and a loop may never end in a case that is not chosen.
    if mixed and any(has_primitive(case.equations, "while") for case in cases):
        return None

    def for_every_place(index, *values):
        results: dict[int, jax.Array] = {}
        for place, numbers in by_place.items():
            used = sorted(uses[place])

            def run(case, *some, numbers=numbers, used=used):
                known = dict(zip([case.inputs[n] for n in used], some, strict=True))
                return evaluate(case, known, [case.outputs[k] for k in numbers])

            branches = [partial(run, case) for case in cases]
            given = [values[n] for n in used]
            if isinstance(place, Several):  # Its equations get places of their own.
                by_case = zip(*(branch(*given) for branch in branches), strict=True)
                chosen = [jax.lax.select_n(index, *one) for one in by_case]
            else:
                chosen = jax.lax.switch(index, branches, *given)
            results |= zip(numbers, chosen, strict=True)
        return [results[k] for k in range(len(eqn.outvars))]

    shapes = [shape_of_variable(v) for v in eqn.invars]
    return inline_calls(jax.make_jaxpr(for_every_place)(*shapes))


def _used_inputs(case: Program) -> list[set[int]]:
    """For each output, the indices of the inputs that it depends on."""
    bits = {v: 1 << n for n, v in enumerate(case.inputs)}  # Faster than sets.

    def together(atoms):
        found = 0
        for v in atoms:
            if isinstance(v, core.Var):
                found |= bits.get(v, 0)
        return found

    for eqn in case.equations:
        bits |= dict.fromkeys(eqn.outvars, together(eqn.invars))
    numbers = range(len(case.inputs))
    return [{n for n in numbers if together([v]) >> n & 1} for v in case.outputs]
