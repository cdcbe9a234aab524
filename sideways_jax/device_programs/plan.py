"""What a run is made of: its modules, where they are, and the shapes of what they send."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from sideways_jax.device_programs.links import Links, links_of
from sideways_jax.device_programs.places import Places, places_of
from sideways_jax.devices import module_groups
from sideways_jax.devices.layout import share_of
from sideways_jax.devices.mesh import check_mesh
from sideways_jax.devices.module_groups import Groups
from sideways_jax.network.module import key_shape
from sideways_jax.network.network import Network
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.division import Divided, divide


class Where(NamedTuple):
    """The modules of a network on the places of a mesh."""

    places: Places
    groups: Groups
    links: Links


class Plan(NamedTuple):
    """All shapes of a run; of whole batches, as programs see them also where several share one."""

    task: Task
    where: Where
    params: tuple
    state: tuple
    frame: PyTree
    target: PyTree
    outputs: tuple  # h_1 ... h_D
    rng: jax.ShapeDtypeStruct | None  # the key of the run
    recompute: bool
    bubble: float  # the value of what has not arrived; tests put NaN

    @property
    def top(self) -> int:
        """The number of the place of the loss."""
        return len(self.where.places) - 1

    def own(self, n: int, modules: tuple) -> tuple:
        """Those of the modules of place n."""
        return tuple(modules[i] for i in self.where.groups[n])


def place_modules(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    mesh: Mesh,
    sizes: tuple[int, ...] | None,
    *,
    train: bool = True,
) -> Where:
    """Places modules on the devices of a mesh.

    Args:
      network, params, state, frame: arrays or shapes; a whole batch of frames.
      mesh: of this process.
      sizes: how many consecutive modules each place takes; None balances counted costs.
      train: whether there is a backward pass, which has a cost.

    Raises:
      ValueError: if the modules or the batch do not fit the mesh, or the mesh not this process.
    """
    places, share = places_of(mesh), share_of(shape_of(frame), mesh)
    if sizes is not None:
        groups = module_groups.from_sizes(sizes, network.depth, check_mesh(mesh)[1])
    else:
        shapes = shape_of(params), shape_of(state)
        costs = module_groups.count_costs(network, *shapes, share, train=train)
        groups = module_groups.balance(costs, len(places))
    return Where(places, groups, links_of(network.wiring, groups))


def make_plan(
    task: Task,
    params: tuple,
    state: tuple,
    frame: PyTree,
    target: PyTree,
    mesh: Mesh,
    sizes: tuple[int, ...] | None,
    rng: jax.Array | jax.ShapeDtypeStruct | None,
    *,
    recompute: bool = True,
    bubble: float = 0.0,
) -> Plan:
    """The plan for these parameters, states, batches of frames and of targets, arrays or shapes.

    Errors are those of `place_modules`; and a ValueError for signals that devices cannot share.
    """
    params, state, frame, target, key = shape_of((params, state, frame, target, rng))
    where = place_modules(task.network, params, state, frame, mesh, sizes)
    outputs = task.network.activation_shapes(params, state, frame)
    _check_divisible(outputs, where.places[0].num_devices)
    return Plan(task, where, params, state, frame, target, outputs, key, recompute, bubble)


def _check_divisible(outputs: tuple, num_devices: int) -> None:
    for i, tree in enumerate(outputs):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not leaf.shape or leaf.shape[0] % num_devices:
                raise ValueError(
                    f"the output of module {i} (0-based){jax.tree_util.keystr(path)} has the shape "
                    f"{leaf.shape}: {num_devices} devices share every batch, and divide the first "
                    "axis of all signals. Give it an axis of examples, or set data=1"
                )


def initial_shapes(network: Network, frame: PyTree) -> tuple[tuple, tuple]:
    """The shapes of what `Network.init` gives for a batch of frames."""
    return jax.eval_shape(network.init, key_shape(), shape_of(frame))


def divided(plan: Plan, tx: optax.GradientTransformation) -> Divided:
    """The optimizer, divided among the places; `division.divide` says what is refused."""
    return divide(tx, plan.params, plan.where.groups)
