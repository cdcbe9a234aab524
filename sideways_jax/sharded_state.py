"""The train state of a sharded run: vectors `[N, length]`, sharded over `depth` (`packing.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from sideways_jax import sharded_optimizer
from sideways_jax.depth_sharded import plan as place
from sideways_jax.layout import DEPTH, Layout, run_branch
from sideways_jax.network import Network
from sideways_jax.packing import Packed, Packing
from sideways_jax.sharded_optimizer import Divided
from sideways_jax.train_state import TrainState
from sideways_jax.trees import PyTree, average, select, shape_of


class Plan(NamedTuple):
    """All shapes of a sharded run."""

    layout: Layout
    params: tuple  # shapes, per module
    state: tuple
    owner: PyTree  # the module of every leaf of the optimizer's state over the whole tree, or None
    opt_packing: Packing  # of the state that each device has, with leaves of size 0 for the others
    optimizer: Divided  # what each device computes of it


def plan(
    network: Network,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    groups: Sequence[int] | None,
    frame: PyTree,
) -> Plan:
    """Only shapes are looked at; `frame` is that of a whole batch, or its shape.

    Raises:
      ValueError: if the modules or the batch do not go into the mesh, or for an optimizer that
        cannot be divided among devices.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(network.init, key, shape_of(frame))
    layout = place(network, params, state, shape_of(frame), mesh, groups)
    optimizer = sharded_optimizer.divide(tx, params, layout.groups)
    opt_packing = Packing.of([optimizer.state(n) for n in range(layout.num_devices)])
    return Plan(layout, params, state, optimizer.owner, opt_packing, optimizer)


def check_lengths(plan: Plan, train_state: TrainState) -> None:
    """Raises ValueError if the state was made for other groups of modules."""
    packings = {
        "params": plan.layout.params,
        "state": plan.layout.state,
        "opt_state": plan.opt_packing,
    }
    for name, packing in packings.items():
        held = getattr(train_state, name)
        is_packed = isinstance(held, dict) and all(hasattr(v, "shape") for v in held.values())
        expected = {key: (plan.layout.num_devices, n) for key, n in packing.lengths.items()}
        if not is_packed or {key: v.shape for key, v in held.items()} != expected:
            raise ValueError(
                f"the {name} of this train state do not lie as groups {plan.layout.groups} need "
                "them: make it with `init` of the same make_train_step and frames of the same "
                "shape, or put one with a pytree for every module on the mesh with "
                "sharded_training.per_module; give groups= to fix who has what"
            )


def on_mesh(mesh: Mesh, function: Callable, in_specs: PyTree, out_specs: PyTree) -> Callable:
    """`function`, run by every device of the mesh on its shards."""
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


def init(
    network: Network,
    tx: optax.GradientTransformation,
    plan: Plan,
    mesh: Mesh,
    key: jax.Array,
    frame: PyTree,
) -> TrainState:
    """The train state that `Network.init` gives, made where it belongs; nothing in flight.

    Every device makes its own modules only, from the keys that they have on one device.
    """
    params_key, rng = jax.random.split(key)

    def branch(n, key):
        params, state = {}, {}
        inputs = (shape_of(frame), *network.activation_shapes(plan.params, plan.state, frame))
        for i in plan.layout.groups[n]:
            key_i = jax.random.fold_in(key, i)
            params[i], state[i] = network.modules[i].init(key_i, inputs[i])
        return (
            plan.layout.params.pack(n, tuple(params.values())),
            plan.layout.state.pack(n, tuple(state.values())),
        )

    def on_device(key, rng):
        branches = [partial(branch, n) for n in range(plan.layout.num_devices)]
        params, state = run_branch(branches, key)
        own = jax.tree.map(lambda x: x[None], (params, state, init_optimizer(plan, params)))
        return jnp.zeros((), jnp.int32), own, rng

    one, by_device = PartitionSpec(), PartitionSpec(DEPTH)
    step, own, rng = on_mesh(mesh, on_device, (one, one), (one, by_device, one))(params_key, rng)
    return TrainState(step, *own, (), rng)


def init_optimizer(plan: Plan, params: Packed) -> Packed:
    """The optimizer's state of one device; to be called inside `shard_map`."""
    return sharded_optimizer.init_on_device(
        plan.optimizer,
        plan.layout.params.unpack,
        lambda n, opt_state, _: plan.opt_packing.pack(n, opt_state),
        params,
    )


def update_on_device(
    tx: optax.GradientTransformation,
    plan: Plan,
    params: Packed,
    opt_state: Packed,
    sums: Packed,
    num_grads: jax.Array,
    *,
    hold: bool = False,
) -> tuple[Packed, Packed, jax.Array]:
    """One update of the weights, on one device; to be called inside `shard_map`.

    Args:
      tx, plan: see above.
      params, opt_state, sums: the vectors of this device; sums of gradients over all replicas.
      num_grads: `[D]`, what the sum of each module is divided by for the mean.
      hold: whether a module without any gradient, which there may be, keeps its weights and its
        part of the optimiser's state.

    Returns:
      `(params, opt_state, grad_norm)`, the global norm of the means.
    """
    layout = plan.layout

    def read(n, params, opt_state, sums, num_grads):
        """Gradients, the optimizer's state and parameters of the modules of device n."""
        own = layout.params.unpack(n, params)
        modules = zip(layout.groups[n], layout.params.unpack(n, sums), strict=True)
        means = tuple(average(one, num_grads[i]) for i, one in modules)
        grads = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), means, own)
        return grads, plan.opt_packing.unpack(n, opt_state), own

    def finish(n, updates, new, params, opt_state, sums, num_grads):
        grads, old, own = read(n, params, opt_state, sums, num_grads)
        if hold:
            trained = num_grads > 0
            updates = tuple(
                select(trained[i], one) for i, one in zip(layout.groups[n], updates, strict=True)
            )
            new = sharded_optimizer.hold_back(plan.optimizer, n, trained, new, old)
        own = optax.apply_updates(own, updates)
        square = sharded_optimizer.squared_norm(grads, like=plan.params)
        return layout.params.pack(n, own), plan.opt_packing.pack(n, new), square

    params, opt_state, square = sharded_optimizer.update_on_device(
        plan.optimizer, read, finish, params, opt_state, sums, num_grads
    )
    return params, opt_state, jnp.sqrt(jax.lax.psum(square, DEPTH))
