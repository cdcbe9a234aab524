"""What every device of a pipeline holds and sends, and how signals get from one to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network import Network
from sideways_jax.packing import Packed, Packing
from sideways_jax.placement import Groups, table
from sideways_jax.trees import PyTree, wide_zeros

DATA, DEPTH = "data", "depth"  # the names of the axes of the mesh


class Layout(NamedTuple):
    """What each device holds, and what it sends."""

    groups: Groups  # the modules of every device
    params: Packing
    state: Packing
    grads: Packing  # sums of gradients: like the parameters, in float32 at least
    signals: Packing  # [n]: what goes up from device n, and comes down to it
    inner: Packing  # [n]: (activations, pseudo-gradients) between the modules of device n
    output: PyTree  # shapes of the network's output

    @property
    def num_devices(self) -> int:
        """N, along `depth`."""
        return len(self.groups)


def make_layout(
    network: Network, groups: Groups, params: tuple, state: tuple, frame: PyTree
) -> Layout:
    """The layout for these modules on these devices; only shapes are looked at.

    Args:
      network: D modules.
      groups: for every device, the modules that it runs.
      params, state: D pytrees, of arrays or their shapes.
      frame: the batch of frames `[B, ...]` that one replica gets.
    """
    shapes = network.activation_shapes(params, state, frame)
    ends = [group[-1] for group in groups]
    between = [tuple(shapes[i] for i in group[:-1]) for group in groups]
    return Layout(
        groups=groups,
        params=Packing.of([tuple(params[i] for i in group) for group in groups]),
        state=Packing.of([tuple(state[i] for i in group) for group in groups]),
        grads=Packing.of([wide_shapes(tuple(params[i] for i in group)) for group in groups]),
        signals=Packing.of([shapes[i] for i in ends[:-1]] + [()]),
        inner=Packing.of([(b, b) for b in between]),
        output=shapes[-1],
    )


def report(layout: Layout, costs: Sequence[float]) -> str:
    """Who has what, as text: modules, share of the work, and bytes used out of bytes held.

    Args:
      layout: see above.
      costs: of every module, in any unit.
    """
    sent = layout.signals.bytes_used
    above_and_below = [sent[n] + (sent[n - 1] if n else 0) for n in range(layout.num_devices)]
    between = layout.inner.bytes_used
    columns = {
        "params": (layout.params.bytes_used, layout.params.bytes_held),
        "state": (layout.state.bytes_used, layout.state.bytes_held),
        "signals": (
            [a + b for a, b in zip(above_and_below, between, strict=True)],
            2 * layout.signals.bytes_held + layout.inner.bytes_held,
        ),
    }
    head, *lines, speedup = table(layout.groups, costs).splitlines()
    for name, (used, held) in columns.items():
        cells = [f"{one:,}/{held:,}" for one in used]
        width = max(map(len, (name, *cells)))
        head += f"  {name:>{width}}"
        lines = [f"{line}  {cell:>{width}}" for line, cell in zip(lines, cells, strict=True)]
    used = sum(sum(used) for used, _ in columns.values())
    held = layout.num_devices * sum(held for _, held in columns.values())
    padding = 1 - used / held if held else 0
    last = f"bytes used/held; {padding:.0%} of what devices hold is padding"
    return "\n".join([head, *lines, speedup, last])


def pack(packing: Packing, groups: Groups, modules: tuple, padding: float = 0.0) -> Packed:
    """One pytree for every module, as vectors with a leading axis over devices, `[N, length]`."""
    rows = [packing.pack(n, tuple(modules[i] for i in g), padding) for n, g in enumerate(groups)]
    return {name: jnp.stack([row[name] for row in rows]) for name in packing.lengths}


def unpack(packing: Packing, groups: Groups, packed: Packed) -> tuple:
    """The inverse of `pack`."""
    modules = []
    for n in range(len(groups)):
        modules.extend(packing.unpack(n, {name: rows[n] for name, rows in packed.items()}))
    return tuple(modules)


def wide_shapes(params: PyTree) -> PyTree:
    """The shapes of the sums of gradients."""
    return jax.eval_shape(wide_zeros, params)


class Sums(NamedTuple):
    """What one device knows after several steps of its replica: an episode, or part of a stream.

    Outputs, losses and metrics are those of the top device; on others they mean nothing.
    """

    grads: Packed  # sums over frames of the gradients of its modules
    state: Packed
    outputs: PyTree  # [K, B, ...], zero where there is none
    losses: jax.Array  # [K], likewise; [K, B] where every example has a clock of its own
    metrics: PyTree = ()  # likewise, by name


def run_branch(branches: Sequence[Callable], *operands):
    """Every device runs its own branch. No collectives inside: not all devices would call them."""
    if len(branches) == 1:
        return branches[0](*operands)
    return jax.lax.switch(jax.lax.axis_index(DEPTH), branches, *operands)


def exchange(from_below: Packed, from_above: Packed, num_devices: int) -> tuple[Packed, Packed]:
    """Activations one device up, pseudo-gradients one device down.

    In open chains, not rings: a device without a sender receives zeros and ignores them.
    Between two devices it is one message each, at the same time: nothing goes below the first or
    above the last, so whatever arrives at the first came down, at the last up.
    """
    if num_devices == 1:
        return from_below, from_above
    if num_devices == 2:
        at_the_bottom = jax.lax.axis_index(DEPTH) == 0
        sent = jax.tree.map(partial(jnp.where, at_the_bottom), from_below, from_above)
        arrived = _send(sent, [(0, 1), (1, 0)])
        return arrived, arrived
    down = [(n + 1, n) for n in range(num_devices - 1)]
    return send_up(from_below, num_devices), _send(from_above, down)


def send_up(activations: Packed, num_devices: int) -> Packed:
    """Activations one device up, in an open chain; see `exchange`."""
    if num_devices == 1:
        return activations
    return _send(activations, [(n, n + 1) for n in range(num_devices - 1)])


def _send(signals: Packed, pairs: Sequence[tuple[int, int]]) -> Packed:
    """From the first device of each pair to the second, all vectors of a dtype in one message."""
    arrived = {}
    for dtype in dict.fromkeys(v.dtype for v in signals.values()):  # In the same order everywhere.
        some = {name: v for name, v in signals.items() if v.dtype == dtype}
        whole = jax.lax.ppermute(jnp.concatenate(list(some.values())), DEPTH, pairs)
        ends = list(itertools.accumulate(v.size for v in some.values()))
        arrived |= dict(zip(some, jnp.split(whole, ends[:-1]), strict=True))
    return arrived


def filled(packing: Packing, value: float) -> Packed:
    """The vectors of a packing, with one value everywhere."""
    return {name: jnp.full(v.shape, value, v.dtype) for name, v in packing.shapes().items()}
