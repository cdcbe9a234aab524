"""Training on a mesh: parameters, optimiser and pipeline state stay on the device of their module.

In the `TrainState` of a sharded run `params`, `state` and `opt_state` are vectors `[N, length]`
sharded over `depth` (see `packing.py`). `per_module` converts it to and from the one that every
other execution has, with one pytree for each module: what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax import sharded_optimizer
from sideways_jax.depth_sharded import counts, episode_on_device, plan
from sideways_jax.episode import LossFn, align_targets, check_episode
from sideways_jax.layout import DATA, DEPTH, Layout, pack, run_branch, unpack
from sideways_jax.mesh import check_mesh
from sideways_jax.network import Network
from sideways_jax.packing import Packing
from sideways_jax.train_state import TrainState
from sideways_jax.trees import PyTree, average, first_of, masked_mean, shape_of, zeros

SPEC = PartitionSpec


class _Plan(NamedTuple):
    """All shapes of a sharded run."""

    layout: Layout
    params: tuple  # shapes, per module
    state: tuple
    owner: PyTree  # the module of every leaf of the optimiser's state over the whole tree, or None
    opt_packing: Packing  # of the state that each device's view gives


def _plan(network, tx, mesh, groups, frame) -> _Plan:
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(network.init, key, shape_of(frame))
    layout = plan(network, params, state, shape_of(frame), mesh, groups)
    owner = sharded_optimizer.check_local(tx, params, layout.groups)
    views = []
    for group in layout.groups:
        stand_ins = jax.eval_shape(partial(sharded_optimizer.stand_ins, params))
        views.append(sharded_optimizer.view({i: params[i] for i in group}, stand_ins))
    opt_packing = Packing.of([jax.eval_shape(tx.init, one) for one in views])
    return _Plan(layout, params, state, owner, opt_packing)


def _check_lengths(plan: _Plan, train_state: TrainState) -> None:
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
    data = DATA if replicas > 1 else None

    def sharded(function, in_specs, out_specs):
        return jax.jit(
            jax.shard_map(
                function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
            )
        )

    def init(key, frame, target_like=None):
        del target_like  # The pipeline starts empty in every episode.
        plan = _plan(network, tx, mesh, groups, frame)
        params_key, rng = jax.random.split(key)

        def branch(n, key):
            # The same keys as Network.init, but each device makes its own modules only.
            params, state = {}, {}
            inputs = (shape_of(frame), *network.activation_shapes(plan.params, plan.state, frame))
            for i in plan.layout.groups[n]:
                key_i = jax.random.fold_in(key, i)
                params[i], state[i] = network.modules[i].init(key_i, inputs[i])
            opt_state = tx.init(
                sharded_optimizer.view(params, sharded_optimizer.stand_ins(plan.params))
            )
            return (
                plan.layout.params.pack(n, tuple(params.values())),
                plan.layout.state.pack(n, tuple(state.values())),
                plan.opt_packing.pack(n, opt_state),
            )

        def on_device(key, rng):
            branches = [partial(branch, n) for n in range(plan.layout.num_devices)]
            own = jax.tree.map(lambda x: x[None], run_branch(branches, key))
            return jnp.zeros((), jnp.int32), own, rng

        specs = SPEC(), SPEC(DEPTH), SPEC()
        step, own, rng = sharded(on_device, (SPEC(), SPEC()), specs)(params_key, rng)
        return TrainState(step, *own, (), rng)

    def train_step(train_state, frames, targets):
        check_episode(network, frames, targets, rule)
        plan = _plan(network, tx, mesh, groups, first_of(frames))
        layout = plan.layout
        _check_lengths(plan, train_state)
        num_frames = jax.tree.leaves(frames)[0].shape[0]
        num_grads, valid = counts(rule, network.depth, num_frames)
        run = episode_on_device(
            network, loss_fn, layout, rule=rule, schedule=schedule, recompute=recompute,
            target=target, train=True, replicas=replicas,
        )  # fmt: skip

        def mean(n, grads):
            """The averaged gradients of device n's modules, and the norms of all their leaves."""
            modules = zip(layout.groups[n], layout.params.unpack(n, grads), strict=True)
            own = {i: average(module_grads, num_grads[i]) for i, module_grads in modules}
            known = {i: sharded_optimizer.norms(one) for i, one in own.items()}
            nothing = zeros(jax.eval_shape(sharded_optimizer.norms, plan.params))
            return layout.params.pack(n, tuple(own.values())), sharded_optimizer.view(
                known, nothing
            )

        def update(n, params, opt_state, grads, norms):
            group = layout.groups[n]

            def seen(modules, others):
                return sharded_optimizer.view(dict(zip(group, modules, strict=True)), others)

            own = layout.params.unpack(n, params)
            updates, new_opt_state = tx.update(
                seen(
                    layout.params.unpack(n, grads), sharded_optimizer.stand_ins(plan.params, norms)
                ),
                plan.opt_packing.unpack(n, opt_state),
                seen(own, sharded_optimizer.stand_ins(plan.params)),
            )
            new = optax.apply_updates(own, tuple(updates[i] for i in group))
            return layout.params.pack(n, new), plan.opt_packing.pack(n, new_opt_state)

        def on_device(params, state, opt_state, frames, targets, rng):
            params, state, opt_state = jax.tree.map(lambda x: x[0], (params, state, opt_state))
            sums = run(params, state, frames, targets, rng)
            devices = range(layout.num_devices)
            grads, norms = run_branch([partial(mean, n) for n in devices], sums.grads)
            norms = jax.lax.psum(norms, DEPTH)  # Others count as zero: a sum puts them together.
            params, opt_state = run_branch(
                [partial(update, n) for n in devices], params, opt_state, grads, norms
            )
            result = params, sums.state, opt_state, sums.outputs, sums.losses
            return *jax.tree.map(lambda x: x[None], result), optax.tree.norm(norms)

        by_device, clip = SPEC(DEPTH), SPEC(None, data)
        *new, outputs, losses, grad_norm = sharded(
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
      `(to_modules, from_modules)`, both jitted. The first gives arrays that every device of the
      mesh has, ready for a checkpoint; the second puts each module where it belongs.
    """
    plan = _plan(network, tx, mesh, groups, frame)
    layout = plan.layout
    device_of = {i: n for n, group in enumerate(layout.groups) for i in group}
    everywhere, by_device = NamedSharding(mesh, SPEC()), NamedSharding(mesh, SPEC(DEPTH))

    def is_owner(x):
        return x is None

    def to_modules(train_state):
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
        )

    def from_modules(train_state):
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
        )

    sharded = TrainState(everywhere, by_device, by_device, by_device, everywhere, everywhere)
    return (
        jax.jit(to_modules, out_shardings=everywhere),
        jax.jit(from_modules, out_shardings=sharded),
    )
