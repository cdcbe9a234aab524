"""Training on a mesh: parameters, optimiser and pipeline state stay on the device of their module.

In the `TrainState` of a sharded run `params`, `state` and `opt_state` are vectors `[N, length]`
sharded over `depth` (see `sharded_state.py`); so are the signals of an online run
(`sharded_in_flight.py`). `per_module` converts it to and from the one that every other execution
has, with one pytree for each module: what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax import sharded_in_flight, sharded_state
from sideways_jax.depth_sharded import counts, episode_on_device
from sideways_jax.episode import LossFn, align_targets, check_episode
from sideways_jax.layout import DEPTH, pack, unpack
from sideways_jax.mesh import check_mesh, data_axis
from sideways_jax.network import Network
from sideways_jax.train_state import TrainState
from sideways_jax.trees import PyTree, first_of, masked_mean

SPEC = PartitionSpec


def make_train_step(
    network: Network,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    rule: str,
    schedule: str | None,
    mesh: Mesh,
    groups: Sequence[int] | None,
    recompute: bool,
    target: str,
    metrics_fn: Callable | None,
) -> tuple[Callable, Callable]:
    """`step.make_train_step` for `execution="depth_sharded"`, one update per episode."""
    replicas, _ = check_mesh(mesh)
    data = data_axis(mesh)

    def init(key, frame, target_like=None):
        del target_like  # The pipeline starts empty in every episode.
        plan = sharded_state.plan(network, tx, mesh, groups, frame)
        return sharded_state.init(network, tx, plan, mesh, key, frame)

    def train_step(train_state, frames, targets):
        check_episode(network, frames, targets, rule)
        plan = sharded_state.plan(network, tx, mesh, groups, first_of(frames))
        sharded_state.check_lengths(plan, train_state)
        num_frames = jax.tree.leaves(frames)[0].shape[0]
        num_grads, valid = counts(rule, network.depth, num_frames)
        run = episode_on_device(
            network, loss_fn, plan.layout, rule=rule, schedule=schedule, recompute=recompute,
            target=target, train=True, replicas=replicas,
        )  # fmt: skip

        def on_device(params, state, opt_state, frames, targets, rng):
            params, state, opt_state = jax.tree.map(lambda x: x[0], (params, state, opt_state))
            sums = run(params, state, frames, targets, rng)
            params, opt_state, grad_norm = sharded_state.update_on_device(
                tx, plan, params, opt_state, sums.grads, num_grads
            )
            result = params, sums.state, opt_state, sums.outputs, sums.losses
            return *jax.tree.map(lambda x: x[None], result), grad_norm

        by_device, clip = SPEC(DEPTH), SPEC(None, data)
        *new, outputs, losses, grad_norm = sharded_state.on_mesh(
            mesh,
            on_device,
            (by_device, by_device, by_device, clip, clip, SPEC()),
            (by_device, by_device, by_device, SPEC(DEPTH, None, data), by_device, SPEC()),
        )(
            train_state.params,
            train_state.state,
            train_state.opt_state,
            frames,
            targets,
            jax.random.fold_in(train_state.rng, train_state.step),
        )
        metrics = {"loss": masked_mean(losses[-1], valid), "grad_norm": grad_norm}
        if metrics_fn is not None:
            aligned = targets
            if rule == "sideways":
                aligned = align_targets(targets, network.depth, target)
            top_outputs = jax.tree.map(lambda x: x[-1], outputs)
            by_step = jax.vmap(metrics_fn)(top_outputs, aligned)
            metrics |= {name: masked_mean(values, valid) for name, values in by_step.items()}
        return TrainState(train_state.step + 1, *new, (), train_state.rng), metrics

    return init, train_step


def per_module(
    network: Network,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    frame: PyTree,
    groups: Sequence[int] | None = None,
) -> tuple[Callable[[TrainState], TrainState], Callable[[TrainState], TrainState]]:
    """Conversions of a sharded `TrainState` to and from the one with a pytree for every module.

    Args:
      network, tx, mesh, groups: those that `make_train_step` was called with.
      frame: the batch of frames, or its shape, that `init` was called with.

    Returns:
      `(to_modules, from_modules)`. The first gives arrays that every device of the mesh has, ready
      for a checkpoint; the second puts each module where it belongs. What is in flight in an online
      run is converted as well.
    """
    plan = sharded_state.plan(network, tx, mesh, groups, frame)
    layout, (replicas, _) = plan.layout, check_mesh(mesh)
    device_of = {i: n for n, group in enumerate(layout.groups) for i in group}
    everywhere, by_device = NamedSharding(mesh, SPEC()), NamedSharding(mesh, SPEC(DEPTH))

    def is_owner(x):
        return x is None

    def to_modules(train_state):
        in_flight = train_state.in_flight
        views = [
            plan.opt_packing.unpack(n, {k: rows[n] for k, rows in train_state.opt_state.items()})
            for n in range(layout.num_devices)
        ]

        def choose(module, *leaves):
            return leaves[0 if module is None else device_of[module]]

        return train_state._replace(
            params=unpack(layout.params, layout.groups, train_state.params),
            state=unpack(layout.state, layout.groups, train_state.state),
            opt_state=jax.tree.map(choose, plan.owner, *views, is_leaf=is_owner),
            in_flight=in_flight and sharded_in_flight.to_modules(layout, in_flight),
        )

    def from_modules(train_state):
        in_flight = train_state.in_flight
        rows = []
        for n, group in enumerate(layout.groups):

            def choose(module, leaf, shape, group=group):
                there = module is None or module in group
                return leaf if there else jnp.zeros(shape.shape, shape.dtype)

            shapes = plan.opt_packing.trees[n]
            seen = jax.tree.map(choose, plan.owner, train_state.opt_state, shapes, is_leaf=is_owner)
            rows.append(plan.opt_packing.pack(n, seen))
        return train_state._replace(
            params=pack(layout.params, layout.groups, train_state.params),
            state=pack(layout.state, layout.groups, train_state.state),
            opt_state={name: jnp.stack([row[name] for row in rows]) for name in rows[0]},
            in_flight=in_flight and sharded_in_flight.from_modules(layout, replicas, in_flight),
        )

    # Jitted for what is there: an online run has something in flight.
    def sharded(train_state):
        in_flight = sharded_in_flight.shardings(mesh) if train_state.in_flight else ()
        shardings = TrainState(everywhere, by_device, by_device, by_device, in_flight, everywhere)
        return jax.jit(from_modules, out_shardings=shardings)(train_state)

    return jax.jit(to_modules, out_shardings=everywhere), sharded
