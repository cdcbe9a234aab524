"""What modules keep for pipelined backprop, on a mesh.

The modules of a device keep their inputs (or residuals) of a step in one row of vectors; there is a
row for each of the last 2(D-1) steps, written in turn. A module looks as many rows back as its
cotangents are late. On one device every module has a buffer of its own (`rule/fifo.py`); the rows
are converted to these buffers for checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.layout import Layout
from sideways_jax.devices.packing import Packed, Packing, filled
from sideways_jax.devices.report import Bytes
from sideways_jax.rule.fifo import Buffer, Entry, Fifo, Past, passes_of, places, started
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree


class Kept(NamedTuple):
    """The rows, and where the next one goes."""

    rows: Packed  # [2(D-1), length]; no vectors with Sideways
    place: jax.Array  # int32[]


def kept_packing(
    task: Task, layout: Layout, inputs: Callable[[int], tuple], rng: jax.Array | None,
    *, recompute: bool,
) -> Packing:  # fmt: skip
    """What the modules of each device keep of a step: nothing with Sideways.

    Args:
      task: what is trained.
      layout: where its modules are.
      inputs: gives, for a device, the shapes of the inputs of its modules.
      rng: a key, if there are keys.
      recompute: whether inputs are kept, or residuals.
    """

    def of_device(n):
        if not task.remembers:
            return ((),) * len(layout.groups[n])
        variables = layout.params.trees[n], layout.state.trees[n], inputs(n)
        found = []
        for i, own_params, own_state, x in zip(layout.groups[n], *variables, strict=True):
            one = passes_of(
                task.network.modules[i], own_params, own_state, x, rng,
                train=task.train, recompute=recompute,
            )  # fmt: skip
            waits = task.network.wiring.held_back(i)
            parts = x if len(waits) > 1 else (x,)
            held_back = (part if wait else () for part, wait in zip(parts, waits, strict=True))
            found.append(_entry(task, i, one.kept, tuple(held_back)))
        return tuple(found)

    return Packing.of([of_device(n) for n in range(layout.num_devices)])


def nothing_kept(task: Task, packing: Packing, bubble: float = 0.0) -> Kept:
    """The rows of one device before the first step; `bubble` is what stands there."""
    count = task.network.wiring.first_trained(0)
    rows = {name: jnp.tile(row, (count, 1)) for name, row in filled(packing, bubble).items()}
    return Kept(rows, jnp.zeros((), jnp.int32))


def _entry(task: Task, i: int, kept: PyTree, held_back: tuple) -> Entry | tuple:
    """What module i keeps of a step. The gradient of the top module is there at once."""
    wiring = task.network.wiring
    if not wiring.first_trained(i) and not any(wiring.held_back(i)):
        return ()
    return Entry(kept if wiring.first_trained(i) else (), held_back)


def bytes_of_rows(task: Task, layout: Layout, packing: Packing) -> Bytes:
    """What the modules of each device keep, and the rows that every device holds."""
    wiring = task.network.wiring

    def of_module(i: int, entry: Entry | tuple) -> int:
        if not isinstance(entry, Entry):
            return 0
        several = [(wiring.first_trained(i), entry.kept)]
        several += zip(wiring.held_back(i), entry.held_back, strict=True)
        return sum(count * Packing.of([tree]).bytes_held for count, tree in several)

    used = [
        sum(of_module(i, entry) for i, entry in zip(group, packing.trees[n], strict=True))
        for n, group in enumerate(layout.groups)
    ]
    return Bytes(used, wiring.first_trained(0) * packing.bytes_held)


def looking_back(task: Task, layout: Layout, packing: Packing, n: int, kept: Kept) -> tuple | None:
    """For every module of device n, what it kept when the input of now's cotangents came.

    And the cotangents of shortcuts that have waited long enough.
    """
    if not task.remembers:
        return None
    wiring = task.network.wiring

    def ago(steps: int, k: int) -> Entry:
        row = {
            name: jax.lax.dynamic_index_in_dim(
                rows, (kept.place - steps) % rows.shape[0], keepdims=False
            )
            for name, rows in kept.rows.items()
        }
        return packing.unpack(n, row)[k]

    found: list[Past | tuple] = []
    for k, i in enumerate(layout.groups[n]):
        late, waits = wiring.first_trained(i), wiring.held_back(i)
        if not late and not any(waits):
            found.append(())
            continue
        held_back = (ago(wait, k).held_back[m] if wait else () for m, wait in enumerate(waits))
        found.append(Past(ago(late, k).kept if late else (), tuple(held_back)))
    return tuple(found)


def with_row(task: Task, kept: Kept, row: Packed) -> Kept:
    """The rows with a new one in the place of the oldest."""
    rows = {
        name: jax.lax.dynamic_update_index_in_dim(old, row[name], kept.place, axis=0)
        for name, old in kept.rows.items()
    }
    return Kept(rows, (kept.place + 1) % max(task.network.wiring.first_trained(0), 1))


def fifos_of(task: Task, layout: Layout, packing: Packing, kept: Kept) -> tuple:
    """The buffer of every module, out of rows `[N, data, 2(D-1), length]`.

    Batches of replicas are joined. States, which are kept beside inputs, become means.
    """
    wiring = task.network.wiring
    fifos: list[Fifo | tuple] = []
    replicas = max((rows.shape[1] for rows in kept.rows.values()), default=1)

    def last(count: int, n: int, k: int, r: int) -> Entry:
        """Of the last so many steps, the oldest first."""
        ages = (kept.place - jnp.arange(count, 0, -1)) % wiring.first_trained(0)
        rows = {name: v[n, r][ages] for name, v in kept.rows.items()}
        return jax.vmap(lambda row: packing.unpack(n, row)[k])(rows)

    for n, group in enumerate(layout.groups):
        for k, i in enumerate(group):
            late, waits = wiring.first_trained(i), wiring.held_back(i)
            if not late and not any(waits):
                fifos.append(())
                continue
            entries: PyTree = ()
            if late:
                entries = _joined([last(late, n, k, r).kept for r in range(replicas)])
            held_back: list[PyTree] = [()] * len(waits)
            for m, wait in enumerate(waits):
                if wait:
                    parts = [last(wait, n, k, r).held_back[m] for r in range(replicas)]
                    # Cotangents are larger on replicas, as those in flight.
                    held_back[m] = jax.tree.map(
                        lambda *x: jnp.concatenate(x, axis=1) / replicas, *parts
                    )
            fifos.append(started(entries, tuple(held_back)))
    return tuple(fifos)


def kept_of(
    task: Task, layout: Layout, packing: Packing, replicas: int, fifos: tuple
) -> Kept:  # fmt: skip
    """The inverse of `fifos_of`."""
    wiring = task.network.wiring
    count = wiring.first_trained(0)

    def in_order(entries: PyTree, fifo: Fifo, like: PyTree) -> PyTree:
        """The entries of a buffer, the oldest first, after as many as there is room for before."""
        length = max((x.shape[0] for x in jax.tree.leaves(entries)), default=0)
        order = (fifo.places.get(length, 0) + jnp.arange(length)) % max(length, 1)
        return _after(places(like, count - length), jax.tree.map(lambda x: x[order], entries))

    def of_module(fifo: Fifo | tuple, like: Entry | tuple, r: int) -> Entry | tuple:
        if not isinstance(fifo, Fifo) or not isinstance(like, Entry):
            return ()
        share = _share(fifo.kept.entries, r, replicas) if isinstance(fifo.kept, Buffer) else ()
        parts = []
        for part, shape in zip(fifo.held_back, like.held_back, strict=True):
            entries = part.entries if isinstance(part, Buffer) else ()
            own = jax.tree.map(lambda x: jnp.split(x, replicas, axis=1)[r] * replicas, entries)
            parts.append(in_order(own, fifo, shape))
        return Entry(in_order(share, fifo, like.kept), tuple(parts))

    rows = []
    for n, group in enumerate(layout.groups):
        of_replicas = []
        for r in range(replicas):
            buffers = [
                of_module(fifos[i], like, r)
                for i, like in zip(group, packing.trees[n], strict=True)
            ]
            pack = jax.vmap(lambda *entries, n=n: packing.pack(n, entries))
            there = bool(jax.tree.leaves(buffers))
            nothing = nothing_kept(task, packing).rows
            of_replicas.append(pack(*buffers) if there else nothing)
        rows.append(jax.tree.map(_stack, *of_replicas))
    return Kept(jax.tree.map(_stack, *rows), jnp.zeros((), jnp.int32))


def _after(before: PyTree, entries: PyTree) -> PyTree:
    if not jax.tree.leaves(before):
        return entries
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, entries)


def _joined(parts: list) -> PyTree:
    """`(state, x)` of all replicas, `[n, ...]` and `[n, B, ...]`, as one."""
    if len(parts) == 1:
        return parts[0]
    state = jax.tree.map(_mean, *(state for state, _ in parts))
    return state, jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *(x for _, x in parts))


def _share(entries: PyTree, r: int, replicas: int) -> PyTree:
    """What replica r has of them."""
    if replicas == 1:
        return entries
    state, x = entries
    return state, jax.tree.map(lambda leaf: jnp.split(leaf, replicas, axis=1)[r], x)


def _mean(*leaves: Any) -> jax.Array:
    """Of floating-point numbers; integers agree."""
    if jnp.issubdtype(leaves[0].dtype, jnp.inexact):
        return sum(leaves[1:], leaves[0]) / len(leaves)
    return leaves[0]


def _stack(*rows):
    return jnp.stack(rows)
