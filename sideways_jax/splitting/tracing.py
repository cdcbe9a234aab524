"""The original as a program, for every mode and batch in which it is called."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sideways_jax.network import Module
from sideways_jax.splitting.places import Axes, Places, batch_axis, places_of
from sideways_jax.splitting.program import CARRIED, program_of
from sideways_jax.tools.programs import shape_of_variable
from sideways_jax.tools.trees import PyTree


class Mode(NamedTuple):
    """How a model is called: in training or not, and the shape of its key, if it gets one."""

    train: bool
    key: jax.ShapeDtypeStruct | None


class Analysis(NamedTuple):
    """A program for a mode, and how the shapes of its values depend on the batch.

    Attributes:
      batch: the number of examples that it was traced with.
      places: where it can be cut.
      axes: of every value, see `batch_axis`.
    """

    batch: int
    places: Places
    axes: tuple[Axes | None, ...]

    def shape(self, value: int, batch: int) -> tuple[int, ...]:
        """The shape of a value for a batch of so many examples."""
        axes = self.axes[value]
        if axes is None:
            return shape_of_variable(self.places.values[value].variable).shape
        return tuple(fixed + by_example * batch for fixed, by_example in axes)

    def dtype(self, value: int) -> jnp.dtype:
        """The dtype of a value."""
        return shape_of_variable(self.places.values[value].variable).dtype


class Tracer:
    """Traces a model, and keeps the programs.

    JAX keeps the traces themselves (`jax.jit`): it knows what they depend on beside the shapes,
    such as the axes of a mesh around them.

    Args:
      module: the model.
      shapes: of its parameters, state and frame.
      carry: the numbers of the parameters, leaf by leaf, that travel as activations.
      repeat: as of `program_of`.
    """

    def __init__(
        self,
        module: Module,
        shapes: tuple[PyTree, PyTree, PyTree],
        carry: tuple[int, ...] = (),
        repeat: tuple[str, ...] = (),
    ):
        self.module, self.carry, self.repeat = module, carry, repeat
        self.params, self.state, self.frame = shapes
        self._calls = {train: jax.jit(functools.partial(self._call, train)) for train in (0, 1)}
        self._places = functools.lru_cache(maxsize=64)(self._places_of)
        self.analysis = functools.lru_cache(maxsize=8)(self._analysis)

    @property
    def batch(self) -> int:
        """The number of examples of the frames that were given."""
        return jax.tree.leaves(self.frame)[0].shape[0]

    def places(self, mode: Mode, batch: int) -> Places:
        """The program of a mode, for a batch of so many examples, in the context of the caller.

        It is the same object as long as nothing has changed.
        """
        frame = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), self.frame
        )
        arguments = (self.params, self.state, frame, mode.key)
        return self._places(_Traced(self._calls[mode.train].trace(*arguments), arguments))

    def _places_of(self, traced: _Traced) -> Places:
        closed, results = traced.traced.jaxpr, traced.traced.out_info
        return places_of(program_of(closed, traced.arguments, results, self.repeat))

    def _call(
        self, train: int, params: PyTree, state: PyTree, frame: PyTree, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(params)
        batch = jax.tree.leaves(frame)[0].shape[0]
        for n in self.carry:
            copies = jnp.broadcast_to(leaves[n][None], (batch, *leaves[n].shape))
            leaves[n] = jnp.mean(checkpoint_name(copies, CARRIED), axis=0)
        params = jax.tree.unflatten(structure, leaves)
        return self.module.apply(params, state, frame, train=bool(train), rng=key)

    def _analysis(self, mode: Mode) -> Analysis:
        """Raises ValueError if the program cannot be traced, or changes with the batch's size."""
        batch = max(self.batch, 2)  # A single example may be a case of its own.
        try:
            one, two = (self.places(mode, n) for n in (batch, 2 * batch))
        except NameError as error:
            if "unbound axis" not in str(error):
                raise
            raise ValueError(
                f"the model computes over an axis of a mesh, which is not there while it is cut: "
                f"make it without that axis (batch_norm_axis=None, axis_name=None). {error}"
            ) from error
        if operations_of(one) != operations_of(two):
            raise ValueError(
                f"the model computes something else for {2 * batch} frames than for {batch}: what "
                "it does may not depend on the number of examples of the batch"
            )
        shapes = ([shape_of_variable(v.variable).shape for v in x.values] for x in (one, two))
        axes = tuple(batch_axis(a, b, batch) for a, b in zip(*shapes, strict=True))
        return Analysis(batch, one, axes)


class _Traced:
    """A trace by the identity of its program."""

    def __init__(self, traced: Any, arguments: tuple):
        self.traced, self.arguments = traced, arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Traced) and self.traced.jaxpr is other.traced.jaxpr

    def __hash__(self) -> int:
        return id(self.traced.jaxpr)


def operations_of(places: Places) -> tuple[str, ...]:
    """The names of all equations, by which two programs are the same but for their shapes."""
    return tuple(eqn.primitive.name for eqn in places.program.equations)


def evaluation_mode(tracer: Tracer, key: jax.ShapeDtypeStruct) -> Mode:
    """How a model is called in evaluation: without a key, if it can do without."""
    try:
        tracer.analysis(Mode(False, None))
    except Exception:
        tracer.analysis(Mode(False, key))
        return Mode(False, key)
    return Mode(False, None)
