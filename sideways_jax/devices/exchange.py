"""Programs that every device of a mesh runs, and how signals get from one device to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sideways_jax.devices.mesh import DATA, DEPTH
from sideways_jax.devices.packing import Packed
from sideways_jax.tools.trees import PyTree


def on_mesh(mesh: Mesh, function: Callable, in_specs: PyTree, out_specs: PyTree) -> Callable:
    """`function`, run by every device of the mesh on its shards."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def own(tree: PyTree) -> PyTree:
    """This device's row of arrays that are sharded over `depth`."""
    return jax.tree.map(lambda x: x[0], tree)


def key_of_replica(rng: jax.Array | None, replicas: int) -> jax.Array | None:
    """The key for dropout masks; each replica has its own."""
    if rng is None or replicas == 1:
        return rng
    return jax.random.fold_in(rng, jax.lax.axis_index(DATA))


def run_branch(branches: Sequence[Callable], *operands):
    """Every device runs its own branch; a branch must not contain collectives."""
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
    arrived: Packed = {}
    for dtype in dict.fromkeys(
        v.dtype for v in signals.values()
    ):  # In the same order on all devices.
        some = {name: v for name, v in signals.items() if v.dtype == dtype}
        whole = jax.lax.ppermute(jnp.concatenate(list(some.values())), DEPTH, pairs)
        ends = list(itertools.accumulate(v.size for v in some.values()))
        arrived |= dict(zip(some, jnp.split(whole, ends[:-1]), strict=True))
    return arrived
