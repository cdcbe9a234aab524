"""Who sends what to whom: outputs up, cotangents down, straight to the place that needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from sideways_jax.device_programs.places import Places
from sideways_jax.devices.module_groups import Groups
from sideways_jax.network.wiring import FRAME, Wiring
from sideways_jax.tools.trees import PyTree


class Links(NamedTuple):
    """The messages of one step."""

    groups: Groups
    up: dict[tuple[int, int], tuple[int, ...]]  # (sender, receiver): the modules whose outputs go

    def sent_up(self, n: int) -> tuple[int, ...]:
        """The modules of place n that are heard on other places."""
        return tuple(sorted({j for (a, _), sources in self.up.items() if a == n for j in sources}))

    def heard_by(self, n: int) -> tuple[int, ...]:
        """The modules of other places that place n hears."""
        return tuple(j for a in self.below(n) for j in self.up[a, n])

    def above(self, n: int) -> list[int]:
        """The places that hear place n, and send it cotangents."""
        return sorted(b for a, b in self.up if a == n)

    def below(self, n: int) -> list[int]:
        """The places that place n hears, and sends cotangents to."""
        return sorted(a for a, b in self.up if b == n)


def links_of(wiring: Wiring, groups: Groups) -> Links:
    """The links between the places of these groups."""
    up = {}
    for a, senders in enumerate(groups):
        for b in range(a + 1, len(groups)):
            heard = {j for k in groups[b] for j in wiring.sources[k]}
            if sources := tuple(j for j in senders if j in heard):
                up[a, b] = sources
    return Links(groups, up)


def hears_frame(wiring: Wiring, group: Sequence[int]) -> bool:
    """Whether a module of a group hears the frame."""
    return any(FRAME in wiring.sources[i] for i in group)


def heard_within(wiring: Wiring, group: Sequence[int]) -> list[int]:
    """The modules of a group that others in it hear."""
    return [j for j in group if any(k in group for k in wiring.receivers(j))]


def deliver_up(links: Links, places: Places, outputs: Sequence[Mapping[int, PyTree]]) -> list:
    """What every place receives from below, by module, when each has sent its outputs."""
    arrived: list[dict[int, PyTree]] = [{} for _ in places]
    for (a, b), sources in links.up.items():
        message = {j: outputs[a][j] for j in sources}
        arrived[b] |= jax.device_put(message, places[b].batch)
    return arrived


def deliver_down(
    links: Links, places: Places, cotangents: Sequence[Mapping[int, Mapping[int, PyTree]]]
) -> list:
    """What every place receives from above: for each place above it, cotangents by module.

    Args:
      cotangents: of every sender, by receiving place and by module.
    """
    return [
        tuple(jax.device_put(cotangents[b][n], place.batch) for b in links.above(n))
        for n, place in enumerate(places)
    ]
