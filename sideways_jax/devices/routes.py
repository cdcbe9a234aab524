"""Which signals go from which device to which, and in which vectors.

What the modules of a device send to those of another goes in one message up, and the cotangents of
it in one message down. All messages over the same distance, in devices, share a route: the plain
chain has one, between neighbours, and a shortcut that skips a device adds one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.module_groups import Groups
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.network.wiring import FRAME, Wiring
from sideways_jax.tools.trees import PyTree


class Route(NamedTuple):
    """Messages that cover the same distance."""

    distance: int  # in devices
    sources: tuple[tuple[int, ...], ...]  # [n]: the modules whose outputs device n sends
    packing: Packing  # [n]: their outputs


def direct(wiring: Wiring, groups: Groups, outputs: Sequence[PyTree]) -> tuple[Route, ...]:
    """Routes by which every signal goes from its sender's device to its receiver's at once.

    Args:
      wiring: who hears whom.
      groups: the modules of every device.
      outputs: shapes of `h_1 ... h_D`.
    """
    routes = []
    for distance in range(1, len(groups)):
        pairs = zip(groups, groups[distance:], strict=False)
        sources = [_heard_in(wiring, above, own) for own, above in pairs] + [()] * distance
        if any(sources):
            routes.append(_route(distance, sources, outputs))
    return tuple(routes)


def relayed(wiring: Wiring, groups: Groups, outputs: Sequence[PyTree]) -> Route:
    """The route between neighbours by which a device hands on all that is needed further up.

    For synchronous networks, in which all signals are of the same frame. Arguments as `direct`.
    """
    sources = []
    for n, group in enumerate(groups):
        above = [k for later in groups[n + 1 :] for k in later]
        sources.append(_heard_in(wiring, above, range(group[-1] + 1)))
    return _route(1, sources, outputs)


def _heard_in(wiring: Wiring, receivers: Iterable[int], sources: Iterable[int]) -> tuple[int, ...]:
    heard = {j for k in receivers for j in wiring.sources[k] if j != FRAME}
    return tuple(j for j in sources if j in heard)


def _route(distance, sources, outputs) -> Route:
    packing = Packing.of([tuple(outputs[j] for j in of_device) for of_device in sources])
    return Route(distance, tuple(sources), packing)


def to_above(route: Route, n: int, outputs: Mapping[int, PyTree], padding: float) -> Packed:
    """What device n sends up, out of its outputs by module; `padding` alone if that is nothing."""
    return route.packing.pack(n, tuple(outputs[j] for j in route.sources[n]), padding)


def to_below(route: Route, n: int, cotangents: Mapping[int, PyTree], padding: float) -> Packed:
    """What device n sends down, out of cotangents by source; `padding` alone if that is nothing."""
    to = n - route.distance
    if to < 0:
        return filled(route.packing, padding)
    return route.packing.pack(to, tuple(cotangents[j] for j in route.sources[to]), padding)


def from_below(route: Route, n: int, vectors: Packed) -> dict[int, PyTree]:
    """What device n received from below, by the module that sent it."""
    sender = n - route.distance
    if sender < 0:
        return {}
    return dict(zip(route.sources[sender], route.packing.unpack(sender, vectors), strict=True))


def from_above(route: Route, n: int, vectors: Packed) -> dict[int, PyTree]:
    """The cotangents that device n received from above, by the module that they are for."""
    return dict(zip(route.sources[n], route.packing.unpack(n, vectors), strict=True))


def added(*by_module: Mapping[int, PyTree]) -> dict[int, PyTree]:
    """The sum of what there is of each module."""
    total: dict[int, PyTree] = {}
    for i, part in (pair for one in by_module for pair in one.items()):
        total[i] = jax.tree.map(jnp.add, total[i], part) if i in total else part
    return total
