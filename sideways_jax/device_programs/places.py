"""Where the programs of a run are: a place for every group of modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from sideways_jax.devices.mesh import DATA, grid
from sideways_jax.devices.module_groups import Groups
from sideways_jax.tools.trees import PyTree


class Place(NamedTuple):
    """Where one program runs: a device, or several (along `data`) that share every batch."""

    whole: Sharding  # of what each of these devices has
    batch: Sharding  # of arrays [B, ...]
    steps: Sharding  # of arrays [K, B, ...]

    @property
    def num_devices(self) -> int:
        """How many."""
        return len(self.whole.device_set)


Places = tuple[Place, ...]  # along `depth`


def places_of(mesh: Mesh) -> Places:
    """The places of a mesh.

    Raises:
      ValueError: if some of its devices belong to another process, which would have to dispatch
        their programs.
    """
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "execution='program_per_device' is for one process that sees all devices of the mesh, "
            f"and this mesh has devices of {_num_processes(mesh)} processes: set "
            "execution='depth_sharded'"
        )
    return tuple(_place(column) for column in grid(mesh).T)


def _num_processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})


def _place(devices: np.ndarray) -> Place:
    if len(devices) == 1:
        here = SingleDeviceSharding(devices[0])
        return Place(here, here, here)
    replicas = Mesh(devices, (DATA,))
    return Place(
        NamedSharding(replicas, PartitionSpec()),
        NamedSharding(replicas, PartitionSpec(DATA)),
        NamedSharding(replicas, PartitionSpec(None, DATA)),
    )


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """`jax.device_put`, which takes some 20 us also for an array that is there; this does not."""

    def is_there(x: Any) -> bool:
        is_array = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
        return is_array and x.committed and x.sharding == sharding

    return tree if all(map(is_there, jax.tree.leaves(tree))) else jax.device_put(tree, sharding)


def put_modules(places: Places, groups: Groups, modules: Sequence[PyTree]) -> tuple:
    """Each pytree on the place of its module; what is there already is not copied."""
    return tuple(
        put(modules[i], place.whole)
        for place, group in zip(places, groups, strict=True)
        for i in group
    )


def groups_of(places: Places, modules: Sequence[PyTree]) -> Groups | None:
    """Which modules are on which place, by their arrays; None if that is no division into groups.

    A module without arrays counts to that below it.
    """
    place_of = {d: n for n, place in enumerate(places) for d in place.whole.device_set}
    found: list[int] = []
    for module in modules:
        devices = {
            d for x in jax.tree.leaves(module) if isinstance(x, jax.Array) for d in x.devices()
        }
        on = {place_of.get(d) for d in devices} or {found[-1] if found else 0}
        n = on.pop()
        if on or n is None:
            return None
        found.append(n)
    if found != sorted(found) or set(found) != set(range(len(places))):
        return None
    return tuple(tuple(i for i, n in enumerate(found) if n == m) for m in range(len(places)))
