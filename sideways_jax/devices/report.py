"""What each device holds, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from sideways_jax.devices import module_groups
from sideways_jax.devices.layout import Layout, place, share_of
from sideways_jax.devices.module_groups import table
from sideways_jax.network.network import Network
from sideways_jax.tools.trees import PyTree, shape_of


class Bytes(NamedTuple):
    """What devices hold of one kind."""

    used: Sequence[int]  # by each device
    held: int  # by every device, padding included


def report(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    mesh: Mesh,
    groups: Sequence[int] | None = None,
    kept: Callable[[Layout], Bytes] | None = None,
    *,
    padded: bool = True,
) -> str:
    """A table of the modules of every device, their share of the work, and what padding costs.

    Arguments and errors are those of `layout.place`. Bytes are used/held: in one program for all
    devices every device holds as much as the largest needs. The state of the optimizer is divided
    like the parameters.

    Args:
      network, params, state, frame, mesh, groups: what is placed, and where.
      kept: what modules keep of past frames, which
        `pipeline.sideways_stage.bytes_kept` counts; nothing by default.
      padded: whether it is one program; a device with a program of its own holds what it uses.
    """
    layout = place(network, params, state, frame, mesh, groups)
    costs = module_groups.count_costs(
        network, shape_of(params), shape_of(state), share_of(frame, mesh)
    )
    return text(layout, costs, kept and kept(layout), padded=padded)


def text(
    layout: Layout, costs: Sequence[float], kept: Bytes | None = None, *, padded: bool = True
) -> str:
    """For every device its modules, its share of the work, and bytes used/held, as text.

    Args:
      layout: of a run.
      costs: of every module, in any unit.
      kept: of past frames, if anything is.
      padded: whether devices hold more than they use.
    """
    columns = {
        "params": Bytes(layout.params.bytes_used, layout.params.bytes_held),
        "state": Bytes(layout.state.bytes_used, layout.state.bytes_held),
        "signals": Bytes(
            signal_bytes(layout),
            2 * sum(route.packing.bytes_held for route in layout.routes) + layout.inner.bytes_held,
        ),
    }
    if kept is not None and kept.held:
        columns["kept"] = kept
    head, *lines, speedup = table(layout.groups, costs).splitlines()
    for name, (used, held) in columns.items():
        cells = [f"{one:,}/{held:,}" if padded else f"{one:,}" for one in used]
        width = max(map(len, (name, *cells)))
        head += f"  {name:>{width}}"
        lines = [f"{line}  {cell:>{width}}" for line, cell in zip(lines, cells, strict=True)]
    if not padded:
        return "\n".join([head, *lines, speedup, "bytes of each device"])
    all_used = sum(sum(used) for used, _ in columns.values())
    all_held = layout.num_devices * sum(held for _, held in columns.values())
    padding = 1 - all_used / all_held if all_held else 0
    last = f"bytes used/held; {padding:.0%} of what devices hold is padding"
    return "\n".join([head, *lines, speedup, last])


def signal_bytes(layout: Layout) -> list[int]:
    """What the signals that each device receives need, and those between its modules."""
    signals = list(layout.inner.bytes_used)
    for route in layout.routes:  # A device has room for what comes from below and from above.
        for n, sent in enumerate(route.packing.bytes_used):
            signals[n] += sent
            if sent:
                signals[n + route.distance] += sent
    return signals
