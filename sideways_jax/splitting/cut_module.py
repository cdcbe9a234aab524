"""A part of a model as a module of a network."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sideways_jax.network import Module
from sideways_jax.splitting.cuts import Cutter
from sideways_jax.splitting.names import nested
from sideways_jax.splitting.original import Original
from sideways_jax.splitting.parts import Parts
from sideways_jax.splitting.pieces import Piece, pieces_of
from sideways_jax.splitting.places import Places
from sideways_jax.splitting.tracing import Mode
from sideways_jax.tools.programs import Program, evaluate
from sideways_jax.tools.trees import PyTree, shape_of


class Division:
    """A model and where it is cut: what all its modules share.

    Args:
      origin: the model.
      cutter: finds the cuts of every mode and batch.
      parts: which module has which leaves.
      owner: the same, of the leaves of parameters and state.
      direct: whether values that skip modules go to their receivers directly.
      frame: the shapes of the example.
    """

    def __init__(
        self,
        origin: Original,
        cutter: Cutter,
        parts: Parts,
        owner: np.ndarray,
        direct: bool,
        frame: PyTree,
    ):
        self.origin, self.cutter, self.parts, self.frame = origin, cutter, parts, frame

        @functools.lru_cache(maxsize=64)
        def pieces(places: Places, cuts: tuple[int, ...]) -> tuple[Piece, ...]:
            return pieces_of(places, cuts, owner, direct)

        self._pieces = pieces

    def pieces(self, mode: Mode, batch: int) -> tuple[Piece, ...]:
        """The modules of a mode, for a batch of so many examples."""
        return self._pieces(*self.cutter.cuts(mode, batch))

    @functools.cached_property
    def received(self) -> tuple[tuple[int, ...] | None, ...]:
        """What every module hears, as numbers of the values of training; None of the frame."""
        return tuple(
            piece.received for piece in self.pieces(self.cutter.modes[0], self.cutter.train.batch)
        )

    def shapes(self, i: int, batch: int) -> list[jax.ShapeDtypeStruct]:
        """The shapes of what module i hears, leaf by leaf, for a batch of so many examples."""
        numbers, train = self.received[i], self.cutter.train
        if numbers is None:
            leaves = jax.tree.leaves(self.frame)
            return [jax.ShapeDtypeStruct((batch, *one.shape[1:]), one.dtype) for one in leaves]
        return [jax.ShapeDtypeStruct(train.shape(k, batch), train.dtype(k)) for k in numbers]

    def batch_of(self, i: int, received: list) -> int:
        """The number of examples in what module i hears.

        Raises:
          ValueError: if it has other shapes or dtypes than what the model was cut with.
        """
        one, two = (self.shapes(i, n) for n in (1, 2))
        per_example = two[0].shape[0] - one[0].shape[0] if one else 1
        got = shape_of(received)
        batch = got[0].shape[0] // per_example if got and got[0].shape else 0
        wanted = self.shapes(i, batch)
        if [(a.shape, a.dtype) for a in got] != [(a.shape, a.dtype) for a in wanted]:
            raise ValueError(
                f"module {i} of a model that was cut hears {_text(got)}, and for {batch} examples "
                f"of the frames that it was cut with it would be {_text(wanted)}: frames have to "
                "be like the example that split got, but for the number of examples; cut it again "
                "for others"
            )
        return batch

    @functools.cached_property
    def drawn(self) -> Program:
        """The program that draws all variables of the model from a key."""
        shape = jax.eval_shape(lambda: jax.random.key(0))
        closed = jax.make_jaxpr(lambda key: self.origin.module.init(key, self.frame))(shape)
        jaxpr = closed.jaxpr
        constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        return Program(jaxpr.invars, jaxpr.eqns, jaxpr.outvars, constants, jaxpr)


def make_module(division: Division, i: int) -> Module:
    """Module i of a model that was cut."""
    parts = division.parts

    def init(key: jax.Array, x: PyTree) -> tuple[dict, dict]:
        del x  # Parameters are those of the model, whose frames are known.
        if division.origin.values is not None:
            leaves = [jax.tree.leaves(tree) for tree in division.origin.values]
            initial = tuple(
                tree.part(i, values)
                for tree, values in zip((parts.params, parts.state), leaves, strict=True)
            )
            # Copies: a train step that donates them must not take the buffers of the model.
            return jax.tree.map(jnp.copy, initial)
        return _drawn_part(division, i, key)

    def apply(
        params: dict, state: dict, x: PyTree, *, train: bool, rng: jax.Array | None
    ) -> tuple[PyTree, dict]:
        received = jax.tree.leaves(x)
        mode = Mode(bool(train), None if rng is None else shape_of(rng))
        batch = division.batch_of(i, received)
        places, _ = division.cutter.cuts(mode, batch)
        piece = division.pieces(mode, batch)[i]
        mine = parts.params.leaves(i, params), parts.state.leaves(i, state)
        sent, new = piece.run(*mine, received, [] if rng is None else [rng])
        if i == parts.depth - 1:
            output = jax.tree.unflatten(places.program.output_tree, sent)
        else:
            output = sent[0] if len(sent) == 1 else tuple(sent)
        names = [parts.state.names[n] for n in parts.state.of_module(i)]
        return output, nested(names, new)

    return Module(init, apply)


def _drawn_part(division: Division, i: int, key: jax.Array) -> tuple[dict, dict]:
    """What module i has of the variables that are drawn from a key; nothing else is drawn."""
    program, parts = division.drawn, division.parts
    params = parts.params.of_module(i)
    count = len(parts.params.names)
    state = [count + n for n in parts.state.of_module(i)]
    wanted = [program.outputs[n] for n in (*params, *state)]
    values: dict[core.Var, jax.Array] = {program.inputs[0]: key}
    drawn = evaluate(program, values, wanted)
    leaves: list = [None] * (count + len(parts.state.names))
    for n, value in zip((*params, *state), drawn, strict=True):
        leaves[n] = value
    return parts.params.part(i, leaves[:count]), parts.state.part(i, leaves[count:])


def _text(shapes: list) -> str:
    return ", ".join(f"{one.dtype}{list(one.shape)}" for one in shapes) or "nothing"
