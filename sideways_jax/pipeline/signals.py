"""The signals of Sideways on one device: what arrives, and what its modules send."""

from __future__ import annotations

from typing import NamedTuple

from sideways_jax.devices.exchange import exchange
from sideways_jax.devices.layout import Layout
from sideways_jax.devices.packing import Packed, filled
from sideways_jax.devices.routes import added, from_above, from_below, to_above, to_below
from sideways_jax.network.wiring import FRAME, heard, returned
from sideways_jax.rule.rule import ModuleStep
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree


class Signals(NamedTuple):
    """What has arrived at one device, and what its own modules send each other."""

    inner: Packed
    from_below: tuple[Packed, ...]  # activations, by route
    from_above: tuple[Packed, ...]  # pseudo-gradients, by route


def no_signals(layout: Layout, bubble: float = 0.0) -> Signals:
    """An empty pipeline; `bubble` is what stands where nothing has arrived."""
    nothing = tuple(filled(route.packing, bubble) for route in layout.routes)
    return Signals(filled(layout.inner, bubble), nothing, nothing)


def received(
    task: Task, layout: Layout, n: int, signals: Signals, frame: PyTree
) -> tuple[tuple, tuple]:
    """What each module of device n hears, and the pseudo-gradient that has come back to it."""
    group, wiring = layout.groups[n], task.network.wiring
    activations, pseudo_gradients = layout.inner.unpack(n, signals.inner)
    sent = {FRAME: frame} | dict(zip(group, activations, strict=False))
    back = [dict(zip(group, pseudo_gradients, strict=False))]
    for route, below, above in zip(
        layout.routes, signals.from_below, signals.from_above, strict=True
    ):
        sent |= from_below(route, n, below)
        back.append(from_above(route, n, above))
    incoming = added(*back)
    return heard(wiring, group, sent), tuple(incoming.get(i) for i in group)


def sent(
    task: Task, layout: Layout, n: int, steps: tuple[ModuleStep, ...], bubble: float
) -> Signals:
    """What the modules of device n send each other, up, and down."""
    group, wiring = layout.groups[n], task.network.wiring
    outputs = {i: one.output for i, one in zip(group, steps, strict=True)}
    of_inputs = {i: one.pseudo_gradient for i, one in zip(group, steps, strict=True)}
    cotangents = {j: returned(wiring, j, of_inputs) for j in range(group[-1])}
    inner = tuple(tuple(x[i] for i in group[:-1]) for x in (outputs, cotangents))
    return Signals(
        layout.inner.pack(n, inner, padding=bubble),
        tuple(to_above(route, n, outputs, bubble) for route in layout.routes),
        tuple(to_below(route, n, cotangents, bubble) for route in layout.routes),
    )


def exchanged(layout: Layout, sent: Signals) -> Signals:
    """What every device has received, after all have sent."""
    arrived = [
        exchange(up, down, layout.num_devices, route.distance)
        for route, up, down in zip(layout.routes, sent.from_below, sent.from_above, strict=True)
    ]
    return Signals(sent.inner, tuple(up for up, _ in arrived), tuple(down for _, down in arrived))
