"""The mesh: its devices along `data` and along `depth`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

DATA, DEPTH = "data", "depth"  # the names of the axes of the mesh


def make_mesh(depth: int, data: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` replicas with `depth` devices each; neighbours along depth are adjacent.

    Args:
      depth: N, the number of devices that share the modules of a network.
      data: the number of replicas that share every batch.
      devices: the first `data * depth` are used; by default those of all processes.

    Raises:
      ValueError: if there are fewer devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    wanted = depth * data
    if depth < 1 or data < 1:
        raise ValueError(f"a mesh needs depth >= 1 and data >= 1, got {depth} and {data}")
    if wanted > len(devices):
        kind = devices[0].platform if devices else "no"
        hint = (
            f"; on the CPU, set jax_num_cpu_devices={wanted} before JAX is first used"
            if kind == "cpu"
            else ""
        )
        raise ValueError(
            f"a mesh of data={data} x depth={depth} needs {wanted} devices, there are "
            f"{len(devices)} ({kind}): lower depth or data{hint}"
        )
    grid = np.asarray(devices[:wanted]).reshape(data, depth)
    return Mesh(grid, (DATA, DEPTH), axis_types=(AxisType.Auto, AxisType.Auto))


def check_mesh(mesh: Mesh | None, execution: str = "depth_sharded") -> tuple[int, int]:
    """The sizes `(data, depth)` of a mesh.

    Raises:
      ValueError: if there is no mesh, or if it has other axes, or axes that are not "auto".
    """
    if mesh is None:
        raise ValueError(
            f"execution={execution!r} needs mesh=, for example sideways_jax.make_mesh(depth=2)"
        )
    names = tuple(mesh.axis_names)
    if DEPTH not in names or set(names) - {DATA, DEPTH}:
        raise ValueError(
            f"the mesh has the axes {names}; depth_sharded needs 'depth', and may have 'data'"
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the axes {names} of the mesh are of type {mesh.axis_types}, depth_sharded needs "
            "Auto: use sideways_jax.make_mesh, or axis_types=(jax.sharding.AxisType.Auto,) * "
            f"{len(names)} in jax.make_mesh"
        )
    return mesh.shape.get(DATA, 1), mesh.shape[DEPTH]


def data_axis(mesh: Mesh) -> str | None:
    """The axis that batches are split over; None without replicas."""
    replicas, _ = check_mesh(mesh)
    return DATA if replicas > 1 else None


def grid(mesh: Mesh) -> np.ndarray:
    """The devices `[data, depth]`, for either order of the axes of the mesh."""
    replicas, num_devices = check_mesh(mesh)
    if mesh.axis_names[0] == DEPTH:
        return mesh.devices.reshape(num_devices, replicas).T
    return mesh.devices.reshape(replicas, num_devices)
