"""The part of a program that one module computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sideways_jax.network.wiring import FRAME
from sideways_jax.splitting.places import Places
from sideways_jax.splitting.program import sources
from sideways_jax.tools.programs import Atom, shape_of_variable


class Piece(NamedTuple):
    """One module in one mode, for one shape of its input.

    Attributes:
      jaxpr: `(params, state, received, key, constants) -> (sent, new_state)`, all leaves.
      constants: arrays that the model closes over.
      heard: whom the module hears: the module below it, or the frame, then its shortcuts.
      received: the numbers of the values that it hears, in order, of all values of the program;
        of module 0 None: it hears the frame.
      num_sent: how many leaves of the result it sends on.
    """

    jaxpr: core.Jaxpr
    constants: tuple[jax.Array, ...]
    heard: tuple[int, ...]
    received: tuple[int, ...] | None
    num_sent: int

    def run(self, params: list, state: list, received: list, key: list) -> tuple[list, list]:
        """`(sent, new_state)`, all leaves."""
        arguments = (*params, *state, *received, *key, *self.constants)
        results = [
            jnp.asarray(x, shape_of_variable(v).dtype) if isinstance(v, core.Literal) else x
            for v, x in zip(
                self.jaxpr.outvars, jax.core.eval_jaxpr(self.jaxpr, [], *arguments), strict=True
            )
        ]
        return results[: self.num_sent], results[self.num_sent :]


def owners(first: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
    """The module of every leaf, from the first fixed equation that needs it, and the cuts."""
    return np.searchsorted(np.asarray(cuts, int), first, side="right")


def pieces_of(
    places: Places, cuts: Sequence[int], owner: np.ndarray, direct: bool
) -> tuple[Piece, ...]:
    """The modules of a program.

    Args:
      places: the program.
      cuts: D-1 places.
      owner: the module of every leaf of the parameters, then of the state.
      direct: whether a value goes from the module that makes it to those that need it, rather than
        through those in between.
    """
    bounds = (0, *cuts, places.program.size)
    number = {value.variable: k for k, value in enumerate(places.values)}
    made_from = sources(places.program)
    sent = [_sent(places, bounds, i, direct) for i in range(len(cuts) + 1)]
    pieces = []
    for i in range(len(bounds) - 1):
        wanted = _wanted(places, bounds, i, sent, owner)
        heard: tuple[int, ...] = (i - 1,)
        if direct:
            heard += _shortcuts(places, bounds, i, made_from)
        received = [v for j in heard for v in (places.program.frame if j == FRAME else sent[j])]
        jaxpr, constants = _extract(places, bounds[i : i + 2], received, wanted, owner == i)
        num_sent = len(sent[i]) if i < len(cuts) else len(places.program.output)
        numbers = tuple(number.get(v, -1) for v in received) if i else None
        pieces.append(Piece(jaxpr, constants, heard, numbers, num_sent))
    return tuple(pieces)


def _sent(places: Places, bounds: Sequence[int], i: int, direct: bool) -> list[core.Var]:
    """What module i sends on."""
    place = bounds[i + 1]
    return [
        value.variable
        for value in (places.values[k] for k in places.crossing[place])
        if not direct or value.made >= bounds[i]
    ]


def _wanted(
    places: Places, bounds: Sequence[int], i: int, sent: list, owner: np.ndarray
) -> list[Atom]:
    """What module i computes: what it sends on, then the new values of its state."""
    program = places.program
    last = i == len(bounds) - 2
    first = len(program.params)
    new = [v for n, v in enumerate(program.new_state) if owner[first + n] == i]
    return [*(program.output if last else sent[i]), *new]


def _shortcuts(
    places: Places, bounds: Sequence[int], i: int, made_from: Callable[[Any], frozenset]
) -> tuple[int, ...]:
    """The modules below the neighbour that module i hears, and perhaps the frame."""
    program = places.program
    made = {value.variable: value.made for value in places.values}
    equations = [program.equations[n] for n in program.fixed[bounds[i] : bounds[i + 1]]]
    atoms = [v for eqn in equations for v in eqn.invars]
    if i == len(bounds) - 2:
        atoms += program.output
    below = {
        made[v] for atom in atoms for v in made_from(atom) if made.get(v, bounds[i]) < bounds[i]
    }
    modules = {FRAME if m < 0 else int(np.searchsorted(bounds, m, side="right")) - 1 for m in below}
    return tuple(sorted(m for m in modules if m < i - 1))


def _extract(
    places: Places,
    bounds: Sequence[int],
    received: Sequence[core.Var],
    wanted: Sequence[Atom],
    owned: np.ndarray,
) -> tuple[core.Jaxpr, tuple]:
    """The equations that compute `wanted`, as a program of its own, and its constants."""
    program = places.program
    leaves = [v for v, own in zip((*program.params, *program.state), owned, strict=True) if own]
    known = {*leaves, *received, *program.key}
    own = set(program.fixed[bounds[0] : bounds[1]])
    others = set(program.fixed) - own
    missing = {v for v in wanted if isinstance(v, core.Var) and v not in known}
    equations = []
    for n in reversed(range(len(program.equations))):
        eqn = program.equations[n]
        if n not in others and (
            not missing.isdisjoint(eqn.outvars) or (eqn.effects and n in own)
        ):  # fmt: skip
            missing.difference_update(eqn.outvars)
            equations.append(eqn)
            missing.update(v for v in eqn.invars if isinstance(v, core.Var) and v not in known)
    constants = [v for v in program.constants if v in missing]
    missing.difference_update(constants)
    if missing:
        raise AssertionError(f"{len(missing)} values of a module come from another: {missing}")
    jaxpr = program.jaxpr.replace(
        constvars=[],
        invars=[*leaves, *received, *program.key, *constants],
        outvars=list(wanted),
        eqns=equations[::-1],
    )
    return jaxpr, tuple(program.constants[v] for v in constants)


def check_alike(one: Sequence[Piece], other: Sequence[Piece], when: Any) -> None:
    """Raises ValueError unless the modules of two modes hear the same modules."""
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.heard != b.heard:
            raise ValueError(
                f"module {i} hears {a.heard} in training and {b.heard} in {when}: shortcuts are "
                'the same in all modes; use skips="along"'
            )
