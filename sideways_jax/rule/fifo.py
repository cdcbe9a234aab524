"""Pipelined backprop: the same pipeline with exact gradients, for a memory of past inputs.

Sideways back-propagates through the current input of a module, because it keeps nothing. Pipelined
backprop (Petrowski, Dreyfus, Girault 1993; Kosson et al. 2021) keeps, in a first-in first-out
buffer, the last 2(D-1-i) inputs of module i (0-based) besides the one of now, and back-propagates
through the oldest: that of the very frame whose cotangent arrives. Clock, messages and gamma stay
as they are, nothing waits, and Sideways is the case without a buffer.

A shortcut from module j to module k is faster than the main path in both directions. Its cotangent
would reach module j 2(k-1-j) steps before that of the main path for the same frame, so module k
holds it back for as long. Where it belongs to no frame of the main path (at the start of a stream)
it is zero.

Buffers need no emptying where a stream ends and another begins. The first cotangent of the main
path comes to module j 2(D-1)-j steps after the restart, and until then what shortcuts bring counts
as nothing. What they bring with it was written j+1 steps after the restart or later, as zero if it
belonged to no frame. And no cotangent of the new stream meets an input of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.module import Module
from sideways_jax.network.wiring import FRAME, Wiring
from sideways_jax.rule.in_flight import InFlight
from sideways_jax.rule.kept import Passes, Stashed, passes, with_stashed_weights
from sideways_jax.tools.trees import PyTree, entry, same_structure, select, shape_of, zeros


class Buffer(NamedTuple):
    """Entries of the last n steps.

    The oldest is read a step ahead. Where it is read before the new one takes its place, XLA copies
    the whole buffer, twice a step; where it is read afterwards, the backward pass waits for that.
    """

    entries: PyTree  # [n, ...]
    oldest: PyTree  # [...]


class Fifo(NamedTuple):
    """What one module keeps; its place in the buffers goes round with the steps."""

    places: dict[int, jax.Array]  # int32[], by length of a buffer: the place of its oldest entry
    kept: Buffer | tuple  # of the last n = 2(D-1-i) steps; () for n = 0
    held_back: tuple  # of every source a `Buffer` of the last m = 2(i-1-j) steps; () for m = 0


class Remembered(NamedTuple):
    """What is in flight in pipelined backprop on a stream, and what modules keep for it."""

    in_flight: InFlight
    fifos: tuple  # of every module a `Fifo`, or ()


class Entry(NamedTuple):
    """What one module keeps of a step, where its buffers lie elsewhere."""

    kept: PyTree  # for the backward pass
    held_back: tuple  # of every source of the module: its cotangent, or () if it need not wait


class Past(NamedTuple):
    """What comes up now of what a module kept, likewise."""

    oldest: PyTree
    held_back: tuple


def passes_of(
    module: Module, params: PyTree, state: PyTree, x: PyTree, rng: jax.Array | None,
    *, train: bool, recompute: bool, stash_weights: bool = False,
) -> Passes:  # fmt: skip
    """The two passes of a module; arguments are arrays or shapes, `rng` is the key of a frame."""

    def run(
        params: PyTree, state: PyTree, x: PyTree, rng: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        return module.apply(params, state, x, train=train, rng=rng)

    shapes = shape_of((params, state, x))
    key = None if rng is None else jax.eval_shape(lambda: rng)
    one = passes(run, (*shapes, key), recompute=recompute)
    return with_stashed_weights(one) if stash_weights else one


def stashes_weights(fifo: Fifo | Past | tuple) -> bool:
    """Whether weights are among what a module keeps."""
    kept = fifo.kept if isinstance(fifo, Fifo) else fifo
    return isinstance(kept, (Buffer, Past)) and isinstance(kept.oldest, Stashed)


def empty_fifo(wiring: Wiring, i: int, one: Passes, x: PyTree) -> Fifo | tuple:
    """The empty buffers of module i; the top module needs none: its gradient is there at once.

    Args:
      wiring: who hears whom.
      i: number of the module.
      one: its passes.
      x: its input, or the shape.
    """
    if i == wiring.depth - 1 and not any(wiring.held_back(i)):
        return ()
    sources = wiring.sources[i]
    parts = x if len(sources) > 1 else (x,)
    held_back = tuple(
        () if j == FRAME else places(part, wait)
        for j, part, wait in zip(sources, parts, wiring.held_back(i), strict=True)
    )
    return started(places(one.kept, wiring.first_trained(i)), held_back)


def started(kept: PyTree, held_back: tuple) -> Fifo:
    """Buffers of these entries, `[n, ...]`, the oldest first; `()` for none."""
    lengths = sorted({x.shape[0] for x in jax.tree.leaves((kept, held_back))})
    return Fifo(
        {n: jnp.zeros((), jnp.int32) for n in lengths},
        _buffer(kept),
        tuple(map(_buffer, held_back)),
    )


def _buffer(entries: PyTree) -> Buffer | tuple:
    return Buffer(entries, entry(entries, 0)) if jax.tree.leaves(entries) else ()


def module_step(
    one: Passes,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    cotangent: PyTree | Callable[[PyTree], PyTree],
    fifo: Fifo | Past,
    keys: tuple[jax.Array | None, jax.Array | None],
    trained: jax.Array,
) -> tuple[PyTree, PyTree, PyTree, PyTree, PyTree]:
    """One module, one step: the forward pass of the newest input, the backward pass of the oldest.

    Args:
      one: its passes.
      params, state: its parameters, which both passes use as they are now, and its state.
      x: the newest input `[B, ...]`.
      cotangent: of the output for the oldest input; or a function that makes it from the output.
      fifo: as the step before left it.
      keys: of the frames of the newest and of the oldest input.
      trained: bool[] or [B], whether there is a cotangent.

    Returns:
      The output, the new state, the gradients, the cotangent of the oldest input, and the buffers;
      of a `Past` the `Entry` of now.
    """
    output, new_state, newest = one.forward(params, state, x, keys[0])
    if isinstance(fifo, Past):  # Where nothing is kept, as at the top, the newest is the oldest.
        late = same_structure(fifo.oldest, newest)
        kept, oldest = (newest, fifo.oldest) if late else ((), newest)
    else:
        kept, oldest = _pass_through(fifo.kept, newest, fifo.places)
    if callable(cotangent):
        cotangent = cotangent(output)
    grads, down = one.backward(params, oldest, keys[1], cotangent)
    several = len(fifo.held_back) > 1
    held_back, parts = [], []
    for waiting, part in zip(fifo.held_back, down if several else (down,), strict=True):
        if isinstance(waiting, Buffer) and isinstance(fifo, Fifo):
            waiting, part = _pass_through(waiting, select(trained, part), fifo.places)
        elif jax.tree.leaves(waiting):
            waiting, part = select(trained, part), waiting
        held_back.append(waiting)
        parts.append(part)
    down = tuple(parts) if several else parts[0]
    if isinstance(fifo, Past):
        return output, new_state, grads, down, Entry(kept, tuple(held_back))
    return output, new_state, grads, down, Fifo(_moved(fifo), kept, tuple(held_back))


def _moved(fifo: Fifo) -> dict[int, jax.Array]:
    return {n: (place + 1) % n for n, place in fifo.places.items()}


def places(like: PyTree, count: int) -> PyTree:
    """Room for so many entries, like an array or its shape; `()` for none."""
    if count == 0:
        return ()
    return zeros(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), shape_of(like))
    )


def _pass_through(
    buffer: Buffer | tuple, newest: PyTree, places: dict[int, jax.Array]
) -> tuple[Buffer | tuple, PyTree]:
    """The buffer, with a new entry in the place of the oldest, and the oldest."""
    if not isinstance(buffer, Buffer):
        return buffer, newest
    length = jax.tree.leaves(buffer.entries)[0].shape[0]
    place = places[length]
    write = partial(jax.lax.dynamic_update_index_in_dim, index=place, axis=0)
    entries = jax.tree.map(write, buffer.entries, newest)
    return Buffer(entries, entry(entries, (place + 1) % length)), buffer.oldest
