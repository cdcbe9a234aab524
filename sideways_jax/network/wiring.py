"""Who hears whom: the inputs of every module, whose cotangents come back to it, and how late.

Module i (0-based) hears module i-1, and module 0 hears the frame: the main path. A shortcut lets a
module hear one more source further below: a module, or the frame itself, which counts as source -1.
A signal takes one computation step from its sender to its receiver. All else follows:

* module i holds at step t what left the frame at step t-i: on the main path, frame t-i;
* what it hears of source j was sent at step t-1 and is of frame t-1-j: i-1-j frames newer than what
  it hears on the main path;
* the cotangent that receiver k sends down to source i, made while k held frame t-1-k, arrives when
  i holds frame t-i: k+1-i frames later;
* an input is complete when all sources have sent, a cotangent when all receivers have. Both are
  last on the main path. Until then the signal is a bubble.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.tools.trees import PyTree

FRAME = -1  # the source that module 0 hears


class Wiring(NamedTuple):
    """The connections of D modules.

    Attributes:
      sources: of every module, what it hears: the module below, then its shortcuts.
      delay: computation steps from a sender to its receiver: 1 in a pipeline, 0 in a synchronous
        network, where everything is of the same frame.
    """

    sources: tuple[tuple[int, ...], ...]
    delay: int = 1

    @property
    def depth(self) -> int:
        """D."""
        return len(self.sources)

    def receivers(self, source: int) -> tuple[int, ...]:
        """The modules that hear a source: the one above, then those that shortcuts lead to."""
        return tuple(i for i, heard in enumerate(self.sources) if source in heard)

    @property
    def shortest_path(self) -> int:
        """The modules on the shortest way from the frame to the output: D without shortcuts."""
        hops = {FRAME: 0}
        for i, heard in enumerate(self.sources):
            hops[i] = 1 + min(hops[j] for j in heard)
        return hops[self.depth - 1]

    def steps_to(self, i: int) -> int:
        """Computation steps from the frame to module i."""
        return self.delay * i

    def frames_ahead(self, source: int, receiver: int) -> int:
        """By how many frames a signal is newer than what the receiver hears on the main path."""
        return self.delay * (receiver - 1 - source)

    def steps_back(self, receiver: int, source: int) -> int:
        """By how many frames the input of a source is newer when its cotangent comes back."""
        return self.delay * (receiver + 1 - source)

    def held_back(self, receiver: int) -> tuple[int, ...]:
        """For every source, by how many steps its cotangent would come back before the main path's.

        For the same frame, when a receiver back-propagates through the inputs of that frame.
        """
        return tuple(
            0 if j == FRAME else 2 * self.delay * (receiver - 1 - j) for j in self.sources[receiver]
        )

    def first_trained(self, i: int) -> int:
        """The number of frames of module i that meet no cotangent, at the start of an episode."""
        return 2 * self.delay * (self.depth - 1 - i)


def wiring_of(depth: int, shortcuts: Sequence = ()) -> Wiring:
    """The wiring of D modules on a main path, with these shortcuts.

    Args:
      depth: D.
      shortcuts: pairs `(source, receiver)`, 0-based; source -1 is the frame.

    Raises:
      ValueError: for a shortcut that does not skip a module upwards, leads out of the network, or
        is there twice.

    >>> wiring_of(4, [(-1, 2), (0, 2)]).sources
    ((-1,), (0,), (1, -1, 0), (2,))
    """
    sources = [[i - 1] for i in range(depth)]
    for source, receiver in shortcut_pairs(shortcuts):
        where = f"shortcut {(source, receiver)}"
        if not FRAME <= source < depth or not 0 <= receiver < depth:
            raise ValueError(
                f"{where} leads to a module that is not there: the modules are 0 to {depth - 1}, "
                f"and the frame, which can only be a source, is {FRAME}"
            )
        if receiver <= source:
            raise ValueError(
                f"{where} does not lead upwards: give (source, receiver), the lower one first, "
                "with a receiver of at least source + 2"
            )
        if receiver == source + 1:
            raise ValueError(
                f"{where} is the main path: module {receiver} hears "
                f"{_name(source)} without a shortcut; leave it out"
            )
        if source in sources[receiver]:
            raise ValueError(f"{where} is there twice: give every shortcut once")
        sources[receiver].append(source)
    return Wiring(tuple(map(tuple, sources)))


def input_of(wiring: Wiring, i: int, sent: Mapping[int, PyTree]) -> PyTree:
    """What module i hears, out of what its sources sent.

    Without shortcuts that is what the module below sent; with them a tuple, the module below first.
    """
    heard = tuple(sent[j] for j in wiring.sources[i])
    return heard if len(heard) > 1 else heard[0]


def heard(wiring: Wiring, group: Iterable[int], sent: Mapping[int, PyTree]) -> tuple:
    """The input of every module of a group, out of what their sources sent at the step before."""
    return tuple(input_of(wiring, i, sent) for i in group)


def returned(wiring: Wiring, source: int, cotangents: Mapping[int, PyTree]) -> PyTree:
    """The cotangent of what a source sent: the sum over those receivers that are given.

    Args:
      cotangents: by receiver, of its input as `input_of` makes it; of one receiver at least.
    """
    total = None
    for k in wiring.receivers(source):
        if k in cotangents:
            sources, of_input = wiring.sources[k], cotangents[k]
            part = of_input[sources.index(source)] if len(sources) > 1 else of_input
            total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


def shortcut_pairs(shortcuts: Any) -> tuple[tuple[int, int], ...]:
    """Shortcuts as pairs of Python's integers, which can be hashed.

    Raises:
      ValueError: for anything else than a sequence of pairs of integers.
    """
    try:
        return tuple(_pair(*one) for one in shortcuts)
    except TypeError:
        raise ValueError(
            f"shortcuts={shortcuts!r}: give a sequence of pairs of integers, (source, receiver), "
            "such as [(-1, 2)] for one from the frame to module 2, or () for none"
        ) from None


def _pair(source: Any, receiver: Any) -> tuple[int, int]:
    if isinstance(source, bool) or isinstance(receiver, bool):
        raise TypeError
    return operator.index(source), operator.index(receiver)


def _name(source: int) -> str:
    return "the frame" if source == FRAME else f"module {source}"
