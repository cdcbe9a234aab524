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
from sideways_jax.tools.programs import same
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


def taken(frame: PyTree) -> PyTree:
    """A frame of a clip, taken at this step and as it came; to be called outside of branches.

    A TPU's compiler else converts the whole clip, before the loop, to what the first module wants:
    as floats, and with a small batch padded to 128 examples.
    """
    return jax.lax.optimization_barrier(frame)


def run_branch(branches: Sequence[Callable], *operands, even: bool = False):
    """Every device runs its own branch; a branch must not contain collectives.

    Args:
      branches: one for every device.
      operands: of the branch.
      even: whether they may all be the same program, which then runs without a choice: TPUs and
        GPUs copy what goes through a branch, and a GPU waits for its host.
    """
    if len(branches) == 1 or (even and alike(branches, *operands)):
        return branches[0](*operands)
    return jax.lax.switch(jax.lax.axis_index(DEPTH), branches, *operands)


def alike(branches: Sequence[Callable], *operands) -> bool:
    """Whether all branches are the same program; see `programs.same`."""
    first, *others = (jax.make_jaxpr(branch)(*operands) for branch in branches)
    return all(same(first, other) for other in others)


def exchange(
    up: Packed, down: Packed, num_devices: int, distance: int = 1
) -> tuple[Packed, Packed]:
    """Activations up, pseudo-gradients down, over so many devices: what arrives of both.

    In open chains, not rings: a device without a sender receives zeros and ignores them. Where no
    device can receive both, they are one message each, at the same time: what arrives at one of the
    lower devices came down, at one of the upper up.
    """
    if num_devices == 1:
        return up, down
    if 2 * distance >= num_devices:
        is_lower = jax.lax.axis_index(DEPTH) < num_devices - distance
        sent = jax.tree.map(partial(jnp.where, is_lower), up, down)
        pairs = _pairs(num_devices, distance)
        arrived = _send(sent, [*pairs, *((to, n) for n, to in pairs)])
        return arrived, arrived
    pairs = _pairs(num_devices, distance)
    return _send(up, pairs), _send(down, [(to, n) for n, to in pairs])


def send_up(activations: Packed, num_devices: int, distance: int = 1) -> Packed:
    """Activations up alone, in open chains; see `exchange`."""
    if num_devices == 1:
        return activations
    return _send(activations, _pairs(num_devices, distance))


def _pairs(num_devices: int, distance: int) -> list[tuple[int, int]]:
    return [(n, n + distance) for n in range(num_devices - distance)]


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
