"""What every device of a pipeline holds and sends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sideways_jax.devices import module_groups
from sideways_jax.devices.mesh import check_mesh
from sideways_jax.devices.module_groups import Groups
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.devices.replicas import check_counters
from sideways_jax.devices.routes import Route, direct, relayed
from sideways_jax.network.network import Network
from sideways_jax.tools.trees import PyTree, shape_of


class Layout(NamedTuple):
    """What each device holds, and what it sends."""

    groups: Groups  # the modules of every device
    params: Packing
    state: Packing
    grads: Packing  # sums of gradients: like the parameters, in float32 at least
    routes: tuple[Route, ...]  # of what goes up from a device, and comes down to it
    relay: Route  # likewise, where all signals are of the same frame
    inner: Packing  # [n]: (activations, pseudo-gradients) between the modules of device n
    output: PyTree  # shapes of the network's output
    in_place: bool = False  # whether sums may go through a branch: see `changes_in_place`

    @property
    def num_devices(self) -> int:
        """N, along `depth`."""
        return len(self.groups)


def make_layout(
    network: Network, groups: Groups, params: tuple, state: tuple, frame: PyTree
) -> Layout:
    """The layout of these modules on these devices, from shapes alone.

    Args:
      network: D modules.
      groups: for every device, the modules that it runs.
      params, state: D pytrees, of arrays or their shapes.
      frame: a replica's share of a batch of frames, `[B, ...]`.
    """
    shapes = network.activation_shapes(params, state, frame)
    between = [tuple(shapes[i] for i in group[:-1]) for group in groups]
    held = partial(Packing.of, matrices=True)
    of_params = held([tuple(params[i] for i in group) for group in groups])
    return Layout(
        groups=groups,
        params=of_params,
        state=held([tuple(state[i] for i in group) for group in groups]),
        grads=of_params.wide(),
        routes=direct(network.wiring, groups, shapes),
        relay=relayed(network.wiring, groups, shapes),
        inner=Packing.of([(b, b) for b in between]),
        output=shapes[-1],
    )


def pack(packing: Packing, groups: Groups, modules: tuple, padding: float = 0.0) -> Packed:
    """One pytree for every module, in slots with a leading axis over devices, `[N, ...]`."""
    rows = [packing.pack(n, tuple(modules[i] for i in g), padding) for n, g in enumerate(groups)]
    return {name: jnp.stack([row[name] for row in rows]) for name in packing.slots}


def unpack(packing: Packing, groups: Groups, packed: Packed) -> tuple:
    """The inverse of `pack`."""
    modules = []
    for n in range(len(groups)):
        modules.extend(packing.unpack(n, {name: rows[n] for name, rows in packed.items()}))
    return tuple(modules)


def place(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    mesh: Mesh,
    groups: Sequence[int] | None,
    *,
    train: bool = True,
) -> Layout:
    """Places the modules on the devices of the mesh.

    Args:
      network, params, state: arrays or their shapes.
      frame: the shape of a whole batch of frames `[B, ...]`.
      mesh: with the axis `depth`, and optionally `data`.
      groups: how many consecutive modules each device takes; None balances counted costs.
      train: whether there is a backward pass, which has a cost, and a state that changes.

    Raises:
      ValueError: if the modules, their states or the batch do not fit the mesh.
    """
    replicas, num_devices = check_mesh(mesh)
    local = share_of(frame, mesh)
    params, state = shape_of(params), shape_of(state)
    if train and replicas > 1:
        check_counters(network, params, state, shape_of(frame), local)
    if groups is None:
        costs = module_groups.count_costs(network, params, state, local, train=train)
        placed = module_groups.balance(costs, num_devices)
    else:
        placed = module_groups.from_sizes(groups, network.depth, num_devices)
    layout = make_layout(network, placed, params, state, local)
    return layout._replace(in_place=changes_in_place(mesh, num_devices))


def changes_in_place(mesh: Mesh, num_devices: int) -> bool:
    """Whether an array that goes through a branch is changed there and not copied.

    So it is without branches, and on TPUs. There gradients are best added in the branch, to the
    sums of one device alone. XLA for CPUs and GPUs copies sums on the way into a branch and out of
    it: there the branch gives gradients, which are added after it.
    """
    return num_devices == 1 or mesh.devices.flat[0].platform == "tpu"


def share_of(frame: PyTree, mesh: Mesh) -> PyTree:
    """The shape of a replica's share of a batch of frames.

    Raises ValueError if the batch does not divide.
    """
    replicas, _ = check_mesh(mesh)
    batch = jax.tree.leaves(frame)[0].shape[0]
    if batch % replicas:
        raise ValueError(
            f"a batch of {batch} does not divide into data={replicas} replicas: use a multiple of "
            f"{replicas}"
        )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // replicas, *x.shape[1:]), x.dtype), frame
    )
