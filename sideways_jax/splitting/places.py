"""Where a program can be cut: which values cross, and what stands against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sideways_jax.splitting.program import Program, sources
from sideways_jax.tools.programs import shape_of_variable

Axes = tuple[tuple[int, int], ...]  # of a shape: (fixed part, part for every example of the batch)


class Value(NamedTuple):
    """A value of a fixed equation, or a leaf of the frame, with its first and last use.

    Attributes:
      variable: it.
      made: the number of the fixed equation that makes it, -1 for the frame.
      last: the number of the last fixed equation that needs it; the number of all of them if the
        output of the model does.
    """

    variable: core.Var
    made: int
    last: int


@dataclasses.dataclass(frozen=True, eq=False)  # equal by identity: they are kept in caches
class Places:
    """A program, and what is known about cutting it.

    Attributes:
      program: it.
      values: all values that cross from an equation to a later one, by `made`.
      crossing: for every place, 0 to the number of fixed equations: which of the values cross.
      first, last: of every leaf of the parameters, then of the state: the first and the last fixed
        equation that has to be in its module; the number of all equations, and -1, without any.
      draws: pairs of fixed equations that draw from the same key.
    """

    program: Program
    values: tuple[Value, ...]
    crossing: tuple[tuple[int, ...], ...]
    first: np.ndarray
    last: np.ndarray
    draws: tuple[tuple[int, int], ...]

    def holds(self, leaf: int, place: int) -> bool:
        """Whether a leaf is needed on both sides of a place."""
        return bool(self.first[leaf] < place <= self.last[leaf])


def places_of(program: Program) -> Places:
    """What is known about cutting a program."""
    origin, end = sources(program), program.size
    needed = [
        frozenset().union(*map(origin, program.equations[n].invars)) for n in program.fixed
    ] + [frozenset().union(*map(origin, program.output))]
    made = dict.fromkeys(program.frame, -1)
    for n, number in enumerate(program.fixed):
        made |= dict.fromkeys(program.equations[number].outvars, n)
    last_use: dict[core.Var, int] = {}
    first_use: dict[core.Var, int] = {}
    for n, variables in enumerate(needed):
        for v in variables:
            first_use.setdefault(v, n)
            last_use[v] = n
    values = tuple(
        Value(v, made[v], last_use.get(v, -1)) for v in made if v in last_use or made[v] < 0
    )
    first, last = _spans(program, origin, made, first_use, last_use)
    crossing: list[list[int]] = [[] for _ in range(end + 1)]
    for k, value in enumerate(values):
        for place in range(value.made + 1, value.last + 1):
            crossing[place].append(k)
    return Places(
        program, values, tuple(map(tuple, crossing)), first, last, _shared_draws(program)
    )  # fmt: skip


def _spans(
    program: Program,
    origin: Callable[[Any], frozenset[core.Var]],
    made: dict[core.Var, int],
    first_use: dict[core.Var, int],
    last_use: dict[core.Var, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last fixed equation that has to be in the module of a leaf."""
    leaves, end = (*program.params, *program.state), program.size
    first = np.array([first_use.get(v, end) for v in leaves], int).reshape(len(leaves))
    last = np.array([last_use.get(v, -1) for v in leaves], int).reshape(len(leaves))
    number = {v: n for n, v in enumerate(leaves)}
    for n, new in enumerate(program.new_state, start=len(program.params)):
        for v in origin(new):
            if v in made:  # The new value is made in the module of what it is made from.
                where = [max(made[v], 0)]
            elif v is leaves[n]:
                continue
            else:
                where = [k for k in (first[number[v]], last[number[v]]) if 0 <= k < end][:1]
            for k in where:
                first[n], last[n] = min(first[n], k), max(last[n], k)
    # The output is computed in the last module, whose equations end with the last one.
    return np.where(first == end, np.where(last < 0, end, end - 1), first), np.minimum(
        last, end - 1
    )


def _shared_draws(program: Program) -> tuple[tuple[int, int], ...]:
    """Fixed equations that draw from the same key: one key in two modules would be two keys."""
    known: dict = {v: ("key", n) for n, v in enumerate(program.key)}
    fixed = {number: n for n, number in enumerate(program.fixed)}
    drawn: dict[object, list[int]] = {}
    for n, eqn in enumerate(program.equations):
        inputs = [known.get(v, v) if isinstance(v, core.Var) else str(v) for v in eqn.invars]
        if not any(isinstance(one, tuple) for one in inputs):
            continue
        if n not in fixed:
            made = (eqn.primitive.name, str(eqn.params), tuple(inputs))
            for k, v in enumerate(eqn.outvars):
                known[v] = (*made, k)
            continue
        for one in inputs:
            if isinstance(one, tuple):
                drawn.setdefault(one, []).append(fixed[n])
    return tuple((min(uses), max(uses)) for uses in drawn.values() if min(uses) < max(uses))


def batch_axis(shape: tuple[int, ...], doubled: tuple[int, ...], batch: int) -> Axes | None:
    """How a shape depends on the batch, from those for `batch` and twice as many examples.

    Returns:
      For every axis `(fixed, by_example)`, its size being `fixed + by_example * batch`; None unless
      the first axis is that of the examples.

    >>> batch_axis((4, 7), (8, 7), 4), batch_axis((7, 4), (7, 8), 4)
    (((0, 1), (7, 0)), None)
    """
    axes = []
    for one, two in zip(shape, doubled, strict=True):
        grown, rest = divmod(two - one, batch)
        if rest:
            return None
        axes.append((one - grown * batch, grown))
    return tuple(axes) if axes and axes[0][0] == 0 and axes[0][1] > 0 else None


def can_travel(v: core.Var) -> bool:
    """Whether a value has a gradient, as all that goes from module to module has to."""
    return bool(jnp.issubdtype(shape_of_variable(v).dtype, jnp.inexact))
