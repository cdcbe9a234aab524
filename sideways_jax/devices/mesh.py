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
      devices: by default those of all processes. The first `data * depth` of them are used, of TPUs
        the first `in_a_line`; to choose the order, make a `jax.sharding.Mesh` yourself.

    Raises:
      ValueError: if there are fewer devices.
    """
    devices = in_a_line(jax.devices() if devices is None else devices)
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


def in_a_line(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Devices in an order in which the next one is one hop away, where they have coordinates.

    TPUs of a slice have places in a box of chips. The line goes along the first axis, one step
    along the second and back again, and so on: on a slice of 2x4 by the numbers 0, 1, 3, 2, 4, 5,
    7, 6. Cores of a chip are neighbours; slices come one after the other. Other devices keep their
    order.
    """

    def line(some: list[jax.Device], axes: int) -> list[jax.Device]:
        layers: dict[int, list[jax.Device]] = {}
        for device in some if axes else ():
            layers.setdefault(_coordinates(device)[axes - 1], []).append(device)
        path = [] if axes else some
        for k, place in enumerate(sorted(layers)):
            layer = line(layers[place], axes - 1)
            path = path + (layer[::-1] if k % 2 else layer)
        return path

    places = {_coordinates(device) for device in devices}
    if () in places or len(places) < len(devices):
        return list(devices)
    return line(list(devices), len(next(iter(places), ())))


def _coordinates(device: jax.Device) -> tuple[int, ...]:
    """The core, the chip, x first, and the slice; () if the device does not say."""
    coordinates = getattr(device, "coords", None)
    if coordinates is None:
        return ()
    core, part = (getattr(device, name, None) or 0 for name in ("core_on_chip", "slice_index"))
    return core, *coordinates, part


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
            f"the mesh has the axes {names}; {execution} needs 'depth', and may have 'data'"
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the axes {names} of the mesh are of type {mesh.axis_types}, {execution} needs "
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
