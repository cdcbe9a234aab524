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
from sideways_jax.rule.fifo import Fifo, Past, passes_of, places, started
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
    """What the modules of each device keep of a step: nothing with Sideways, or in the top one.

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
        found: list[PyTree] = []
        for i, own_params, own_state, x in zip(layout.groups[n], *variables, strict=True):
            one = passes_of(
                task.network.modules[i], own_params, own_state, x, rng,
                train=task.train, recompute=recompute,
            )  # fmt: skip
            found.append(one.kept if i < task.depth - 1 else ())
        return tuple(found)

    return Packing.of([of_device(n) for n in range(layout.num_devices)])


def nothing_kept(task: Task, packing: Packing, bubble: float = 0.0) -> Kept:
    """The rows of one device before the first step; `bubble` is what stands there."""
    count = task.network.wiring.first_trained(0)
    rows = {name: jnp.tile(row, (count, 1)) for name, row in filled(packing, bubble).items()}
    return Kept(rows, jnp.zeros((), jnp.int32))


def bytes_of_rows(task: Task, layout: Layout, packing: Packing) -> Bytes:
    """What the modules of each device keep, and the rows that every device holds."""
    wiring = task.network.wiring
    used = [
        sum(
            wiring.first_trained(i) * Packing.of([tree]).bytes_held
            for i, tree in zip(group, packing.trees[n], strict=True)
        )
        for n, group in enumerate(layout.groups)
    ]
    return Bytes(used, wiring.first_trained(0) * packing.bytes_held)


def looking_back(task: Task, layout: Layout, packing: Packing, n: int, kept: Kept) -> tuple | None:
    """For every module of device n, what it kept when the input of now's cotangents came."""
    if not task.remembers:
        return None
    found: list[Past | tuple] = []
    for k, i in enumerate(layout.groups[n]):
        late = task.network.wiring.first_trained(i)
        if late == 0:  # The gradient of the top module is there at once.
            found.append(())
            continue
        row = {
            name: jax.lax.dynamic_index_in_dim(
                rows, (kept.place - late) % rows.shape[0], keepdims=False
            )
            for name, rows in kept.rows.items()
        }
        found.append(Past(packing.unpack(n, row)[k]))
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
    fifos: list[Fifo | tuple] = []
    replicas = max((rows.shape[1] for rows in kept.rows.values()), default=1)
    for n, group in enumerate(layout.groups):
        for k, i in enumerate(group):
            late = task.network.wiring.first_trained(i)
            if late == 0:
                fifos.append(())
                continue
            # The oldest first.
            count = task.network.wiring.first_trained(0)
            ages = (kept.place - jnp.arange(late, 0, -1)) % count
            parts = []
            for r in range(replicas):
                rows = {name: v[n, r][ages] for name, v in kept.rows.items()}
                parts.append(jax.vmap(lambda row, n=n, k=k: packing.unpack(n, row)[k])(rows))
            held_back = ((),) * len(task.network.wiring.sources[i])  # None: no such shortcuts.
            fifos.append(started(_joined(parts), held_back))
    return tuple(fifos)


def kept_of(
    task: Task, layout: Layout, packing: Packing, replicas: int, fifos: tuple
) -> Kept:  # fmt: skip
    """The inverse of `fifos_of`."""
    count = task.network.wiring.first_trained(0)
    rows = []
    for n, group in enumerate(layout.groups):
        of_replicas = []
        for r in range(replicas):
            buffers = []
            for k, i in enumerate(group):
                if not isinstance(fifos[i], Fifo):
                    buffers.append(())
                    continue
                late = task.network.wiring.first_trained(i)
                order = jnp.arange(late)  # The oldest first.
                if late in fifos[i].places:  # Else nothing is kept.
                    order = (fifos[i].places[late] + order) % late
                entries = jax.tree.map(lambda x, order=order: x[order], fifos[i].kept)
                entries = _share(entries, r, replicas)
                before = places(packing.trees[n][k], count - late)
                buffers.append(_after(before, entries))
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
