"""A traced model as a list of equations: those of the frame, and those that any module can repeat.

An equation that the frame goes into is computed once, in one module, and so is a random draw. All
others, of parameters, state and keys alone (a cast of the weights, the key of a dropout layer), are
repeated in every module that needs what they give. So the order in which a model prepares its
parameters does not matter, and every module derives its keys from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
from jax.extend import core

from sideways_jax.splitting.boundary import marks
from sideways_jax.tools.programs import Atom, inline_calls
from sideways_jax.tools.trees import PyTree

CARRIED = "sideways_jax.carried"  # the name of a parameter that travels as an activation
# Equations that make keys of keys, and move them about.
_KEYS = {
    *("random_wrap", "random_unwrap", "random_fold_in", "random_split", "random_clone", "slice"),
    *("squeeze", "reshape", "copy", "broadcast_in_dim", "dynamic_slice", "gather", "concatenate"),
    "convert_element_type",
}


class Program(NamedTuple):
    """A model for one mode and one shape of its frames.

    Attributes:
      params, state, frame, key: the variables of its arguments, leaf by leaf.
      equations: all that its results need, in order.
      fixed: the numbers of those equations that one module alone computes. Places to cut are
        counted by them: place c is between the fixed equations c-1 and c.
      marks: the place of every call of `boundary`.
      output, new_state: its results, leaf by leaf.
      output_tree: the structure of the output.
      constants: arrays that the model closes over.
      jaxpr: whose debugging information its parts take.
    """

    params: tuple[core.Var, ...]
    state: tuple[core.Var, ...]
    frame: tuple[core.Var, ...]
    key: tuple[core.Var, ...]
    equations: tuple[core.JaxprEqn, ...]
    fixed: tuple[int, ...]
    marks: tuple[int, ...]
    output: tuple[Atom, ...]
    new_state: tuple[Atom, ...]
    output_tree: Any
    constants: dict[core.Var, jax.Array]
    jaxpr: core.Jaxpr

    @property
    def size(self) -> int:
        """How many fixed equations there are."""
        return len(self.fixed)


def program_of(
    closed: core.ClosedJaxpr,
    arguments: tuple[PyTree, ...],
    results: PyTree,
    repeat: Collection[str],
) -> Program:
    """The program of a traced model.

    Args:
      closed: `(params, state, frame, key) -> (output, new_state)`, traced.
      arguments: what it was traced with; its leaves are counted.
      results: the shapes of what it gives.
      repeat: names of further equations that modules repeat rather than share, though the frame
        goes into them.

    Raises:
      ValueError: for a call of `boundary` inside a loop.
    """
    flat = inline_calls(closed, derivatives=False)
    inputs, groups = list(flat.inputs), []
    for argument in arguments:
        count = len(jax.tree.leaves(argument))
        groups.append(tuple(inputs[:count]))
        inputs = inputs[count:]
    if inputs:
        raise ValueError(
            f"the model uses {len(inputs)} traced values of a function around it: hand them to it "
            "as parameters, and call split outside of jax.jit and jax.grad"
        )
    params, state, frame, key = groups
    output = results[0]
    num_output = len(jax.tree.leaves(output))
    ends = marks(flat.equations)
    live = _live(flat.equations, flat.outputs)
    equations = [flat.equations[n] for n in live]
    fixed = _fixed(equations, frame, key, repeat)
    placed = [live[n] for n in fixed]
    return Program(
        params, state, frame, key, tuple(equations), tuple(fixed),
        tuple(sum(n <= end for n in placed) for end in ends),
        tuple(flat.outputs[:num_output]), tuple(flat.outputs[num_output:]),
        jax.tree.structure(output), flat.constants, flat.jaxpr,
    )  # fmt: skip


def _live(equations: list[core.JaxprEqn], outputs: list[Atom]) -> list[int]:
    """The numbers of the equations that something depends on."""
    needed, live = set(filter(_is_variable, outputs)), []
    for n in reversed(range(len(equations))):
        eqn = equations[n]
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            live.append(n)
            needed.update(filter(_is_variable, eqn.invars))
    return live[::-1]


def _fixed(
    equations: list[core.JaxprEqn],
    frame: tuple[core.Var, ...],
    key: tuple[core.Var, ...],
    repeat: Collection[str],
) -> list[int]:
    moving, keyed, fixed = set(frame), set(key), []
    for n, eqn in enumerate(equations):
        inputs = set(filter(_is_variable, eqn.invars))
        draws = not keyed.isdisjoint(inputs) and eqn.primitive.name not in _KEYS
        moves = not moving.isdisjoint(inputs)
        if moves and eqn.primitive.name in repeat:
            moving.update(eqn.outvars)
        elif eqn.params.get("name") == CARRIED:
            fixed.append(n)
        elif moves or draws or eqn.effects:
            fixed.append(n)
            moving.update(eqn.outvars)
        elif not keyed.isdisjoint(inputs):
            keyed.update(eqn.outvars)
    return fixed


def sources(program: Program) -> Callable[[Any], frozenset[core.Var]]:
    """A function that says what a variable is made from by equations that can be repeated.

    Those are values of fixed equations, and leaves of the parameters, the state and the frame.
    """
    fixed = set(program.fixed)
    origin = {v: frozenset((v,)) for v in (*program.params, *program.state, *program.frame)}
    nothing: frozenset[core.Var] = frozenset()
    for n, eqn in enumerate(program.equations):
        if n in fixed:
            origin |= {v: frozenset((v,)) for v in eqn.outvars}
        else:
            variables = (v for v in eqn.invars if isinstance(v, core.Var))
            merged = nothing.union(*(origin.get(v, nothing) for v in variables))
            origin |= dict.fromkeys(eqn.outvars, merged)
    return lambda atom: origin.get(atom, nothing) if isinstance(atom, core.Var) else nothing


def _is_variable(atom: Any) -> bool:
    return isinstance(atom, core.Var)
