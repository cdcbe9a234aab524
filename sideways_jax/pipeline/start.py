"""The train state that a run on a mesh starts from, made where it belongs."""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.exchange import on_mesh, run_branch
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.network.network import Network
from sideways_jax.pipeline.plan import Plan, close_state
from sideways_jax.pipeline.update import init_optimizer
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.train_state import TrainState, new_train_state


def init_state(
    network: Network,
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
        activations = network.activation_shapes(plan.params, plan.state, frame)
        inputs = network.inputs(shape_of(frame), activations)
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
        return own, rng

    one, by_device = PartitionSpec(), PartitionSpec(DEPTH)
    run = jax.jit(on_mesh(mesh, on_device, (one, one), (by_device, one)))
    held, rng = run(params_key, rng)
    everywhere = NamedSharding(mesh, one)
    empty = jax.jit(lambda: new_train_state((), (), (), (), ()), out_shardings=everywhere)()
    return close_state(plan, empty._replace(rng=rng), *held)
