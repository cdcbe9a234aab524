"""The signals between modules on a mesh, as a train state carries them from call to call."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.layout import Layout
from sideways_jax.devices.mesh import DEPTH, data_axis
from sideways_jax.devices.packing import Packing, filled
from sideways_jax.devices.routes import added, from_above, from_below, to_above
from sideways_jax.pipeline.kept import Kept, fifos_of, kept_of, nothing_kept
from sideways_jax.pipeline.signals import Signals
from sideways_jax.rule.fifo import Remembered
from sideways_jax.rule.in_flight import InFlight, no_frames
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, Static, shape_of, zeros


class ShardedInFlight(NamedTuple):
    """`step.InFlight`, with the signals where they have arrived.

    Frame numbers need no messages: every device of a replica has all of them, and counts on.
    """

    signals: Signals  # vectors [N, data, length], sharded over both
    activation_frames: jax.Array  # int32[D-1, B], sharded over data; as in InFlight
    pseudo_gradient_frames: jax.Array
    targets: tuple  # [B, ...] each, sharded over data; as in InFlight
    kept: Kept  # rows [N, data, 2(D-1), length], sharded over both; none with Sideways
    made_for: Static  # the rule, replicas, and the shapes of the signals and of what is kept


def specs(data: str | None) -> ShardedInFlight:
    """How it lies on the mesh; `data` is the axis of replicas, if there are any."""
    spec: Any = PartitionSpec  # Any: records that hold arrays hold specifications too.
    if data is None:  # Not P(..., None): that is the same, but another key to compiled programs.
        return ShardedInFlight(
            spec(DEPTH), spec(), spec(), spec(), Kept(spec(DEPTH), spec()), spec()
        )
    numbers, by_both = spec(None, data), spec(DEPTH, data)
    return ShardedInFlight(by_both, numbers, numbers, spec(data), Kept(by_both, spec()), spec())


def shardings(mesh: Mesh) -> ShardedInFlight:
    """`specs` on this mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs(data_axis(mesh)),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def empty_pipeline(
    task: Task, layout: Layout, packing: Packing, replicas: int, batch: int, target: PyTree = None
) -> ShardedInFlight:
    """The empty pipeline.

    Args:
      task: what is trained.
      layout: of the share of one replica.
      packing: of what is kept (`kept.py`).
      replicas: along `data`.
      batch: B, over all replicas.
      target: a batch of targets, or its shape, if they are carried along; else None.
    """
    depth = sum(map(len, layout.groups))

    def vectors(packing):
        shape = layout.num_devices, replicas
        return {name: jnp.zeros((*shape, *v.shape), v.dtype) for name, v in packing.slots.items()}

    up, down = (tuple(vectors(route.packing) for route in layout.routes) for _ in range(2))
    signals = Signals(vectors(layout.inner), up, down)
    targets = () if target is None else (zeros(shape_of(target)),) * (depth - 1)
    nothing = no_frames(depth, batch), no_frames(depth, batch)
    kept = jax.tree.map(
        lambda row: jnp.broadcast_to(row, (layout.num_devices, replicas, *row.shape)),
        nothing_kept(task, packing).rows,
    )
    kept = Kept(kept, jnp.zeros((), jnp.int32))
    made_for = _made_for(task, layout, packing, replicas)
    return ShardedInFlight(signals, *nothing, targets, kept, made_for)


def _made_for(task: Task, layout: Layout, packing: Packing, replicas: int) -> Static:
    routes = tuple(route.packing.signature for route in layout.routes)
    return Static((task.rule, replicas, layout.inner.signature, routes, packing.signature))


def check_signals(
    task: Task, layout: Layout, packing: Packing, replicas: int, in_flight: ShardedInFlight
) -> None:
    """Raises ValueError if what is in flight came from other frames, another mesh or rule."""
    if in_flight.made_for != _made_for(task, layout, packing, replicas):
        raise ValueError(
            "what is in flight in this train state came from frames of another shape, another mesh "
            f"than one with data={replicas}, or another rule than {task.rule!r}: a pipeline is "
            "carried on with frames like those that `init` was called with; step.per_module takes "
            "it to another mesh"
        )


def signals_from_modules(
    task: Task, layout: Layout, packing: Packing, replicas: int, in_flight: InFlight | Remembered
) -> ShardedInFlight:
    """An `InFlight` with frame numbers per example, on its way to the devices.

    The loss of a replica is the mean over its share of the batch, so that pseudo-gradients are as
    many times larger there as there are replicas.
    """
    in_flight, fifos = in_flight if isinstance(in_flight, Remembered) else (in_flight, ())

    def pack(activations, pseudo_gradients):
        by_module = dict(enumerate(activations))
        rows = []
        for n, group in enumerate(layout.groups):
            inner = tuple(tuple(x[i] for i in group[:-1]) for x in (activations, pseudo_gradients))
            below, above = [], []
            for route in layout.routes:
                nothing = filled(route.packing, 0)
                sender = n - route.distance
                below.append(to_above(route, sender, by_module, 0) if sender >= 0 else nothing)
                # The sum over receivers comes along the main path, as if they were one.
                sums = zeros(route.packing.trees[n])
                if route.distance == 1 and sums:
                    sums = (*sums[:-1], pseudo_gradients[group[-1]])
                above.append(route.packing.pack(n, sums))
            rows.append(Signals(layout.inner.pack(n, inner), tuple(below), tuple(above)))
        return jax.tree.map(_stack, *rows)

    def share(tree, replica):
        return jax.tree.map(lambda x: jnp.split(x, replicas)[replica], tree)

    scaled = jax.tree.map(lambda x: x * replicas, in_flight.pseudo_gradients)
    both = in_flight.activations, scaled
    rows = [pack(*share(both, replica)) for replica in range(replicas)]
    signals = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rows)
    kept = Kept({}, jnp.zeros((), jnp.int32))
    if fifos:
        kept = kept_of(task, layout, packing, replicas, fifos)
    made_for = _made_for(task, layout, packing, replicas)
    return ShardedInFlight(signals, *in_flight[2:], kept, made_for)


def signals_to_modules(
    task: Task, layout: Layout, packing: Packing, in_flight: ShardedInFlight
) -> InFlight | Remembered:
    """The inverse of `signals_from_modules`."""

    def unpack(signals):
        activations: dict[int, PyTree] = {}
        pseudo_gradients: dict[int, PyTree] = {}
        for n, group in enumerate(layout.groups):
            own = jax.tree.map(lambda x, n=n: x[n], signals)
            up, down = layout.inner.unpack(n, own.inner)
            activations |= dict(zip(group, up, strict=False))
            back = [dict(zip(group, down, strict=False))]
            for route, below, above in zip(
                layout.routes, own.from_below, own.from_above, strict=True
            ):
                activations |= from_below(route, n, below)
                back.append(from_above(route, n, above))
            pseudo_gradients |= added(*back)
        between = range(len(activations))
        return tuple(tuple(x[i] for i in between) for x in (activations, pseudo_gradients))

    replicas = max((x.shape[1] for x in jax.tree.leaves(in_flight.signals)), default=1)
    shares = [
        unpack(jax.tree.map(lambda x, r=r: x[:, r], in_flight.signals)) for r in range(replicas)
    ]
    activations, scaled = jax.tree.map(lambda *x: jnp.concatenate(x), *shares)
    pseudo_gradients = jax.tree.map(lambda x: x / replicas, scaled)
    signals = InFlight(activations, pseudo_gradients, *in_flight[1:4])
    if not task.remembers:
        return signals
    return Remembered(signals, fifos_of(task, layout, packing, in_flight.kept))


def _stack(*rows):
    return jnp.stack(rows)
