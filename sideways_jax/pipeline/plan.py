"""The train state of a sharded run: vectors `[N, length]`, sharded over `depth` (`packing.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.exchange import on_mesh, run_branch
from sideways_jax.devices.layout import Layout, place
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.devices.packing import Packed, Packing
from sideways_jax.devices.placement import Groups
from sideways_jax.network.network import Network
from sideways_jax.pipeline import local_optimizer
from sideways_jax.tools.trees import PyTree, average, select, shape_of, zeros
from sideways_jax.training.hold_back import hold_back
from sideways_jax.training.train_state import TrainState, new_train_state


@partial(jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["groups"])
@dataclasses.dataclass(frozen=True)
class Placed:
    """What all devices hold of one kind (parameters, say), and whose it is."""

    vectors: Packed  # [N, length], sharded over `depth`
    groups: Groups  # the modules of every device; part of the structure, not a value


class Plan(NamedTuple):
    """All shapes of a sharded run."""

    layout: Layout
    params: tuple  # shapes, per module
    state: tuple
    owner: PyTree  # the module of every leaf of the optimizer's state over the whole tree, or None
    opt_packing: Packing  # of the state that each device's view gives


def make_plan(
    network: Network,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    groups: Sequence[int] | None,
    frame: PyTree,
) -> Plan:
    """Only shapes are looked at; `frame` is that of a whole batch, or its shape.

    Raises:
      ValueError: if the modules or the batch do not go into the mesh, or for an optimizer that
        would give other updates.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(network.init, key, shape_of(frame))
    layout = place(network, params, state, shape_of(frame), mesh, groups)
    owner = local_optimizer.check_local(tx, params, layout.groups)
    views = []
    for group in layout.groups:
        stand_ins = jax.eval_shape(partial(local_optimizer.stand_ins, params))
        views.append(local_optimizer.view({i: params[i] for i in group}, stand_ins))
    opt_packing = Packing.of([jax.eval_shape(tx.init, one) for one in views])
    return Plan(layout, params, state, owner, opt_packing)


def open_state(plan: Plan, train_state: TrainState) -> tuple[Packed, Packed, Packed]:
    """The vectors of parameters, state and state of the optimizer, `[N, length]`.

    Raises:
      ValueError: if the train state was made for other groups of modules, or other modules.
    """
    packings = {
        "params": plan.layout.params,
        "state": plan.layout.state,
        "opt_state": plan.opt_packing,
    }
    for name, packing in packings.items():
        held = getattr(train_state, name)
        expected = {key: (plan.layout.num_devices, n) for key, n in packing.lengths.items()}
        if (
            not isinstance(held, Placed)
            or held.groups != plan.layout.groups
            or {key: v.shape for key, v in held.vectors.items()} != expected
        ):
            made_for = f", but for {held.groups}" if isinstance(held, Placed) else ""
            raise ValueError(
                f"the {name} of this train state were not made for frames of this shape and groups "
                f"{plan.layout.groups} of modules{made_for}: make it with `init` of the same "
                "make_train_step, or put one with a pytree for every module on the mesh with "
                "step.per_module"
            )
    return tuple(getattr(train_state, name).vectors for name in packings)


def close_state(
    plan: Plan, train_state: TrainState, params: Packed, state: Packed, opt_state: Packed
) -> TrainState:
    """The train state with new vectors in the place of those that `open_state` gave."""
    new = (Placed(vectors, plan.layout.groups) for vectors in (params, state, opt_state))
    return train_state._replace(**dict(zip(("params", "state", "opt_state"), new, strict=True)))


def groups_of(train_state: TrainState, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How many modules each device has in this train state; `sizes` if it does not say.

    They were chosen when it was made, from the costs at the size that frames had then. A given
    choice stays as it is, so that a state made for another is noticed.
    """
    held = train_state.params
    if sizes is None and isinstance(held, Placed):
        return tuple(map(len, held.groups))
    return sizes


def init_state(
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
        opt_state = tx.init(local_optimizer.view(params, local_optimizer.stand_ins(plan.params)))
        return (
            plan.layout.params.pack(n, tuple(params.values())),
            plan.layout.state.pack(n, tuple(state.values())),
            plan.opt_packing.pack(n, opt_state),
        )

    def on_device(key, rng):
        branches = [partial(branch, n) for n in range(plan.layout.num_devices)]
        own = jax.tree.map(lambda x: x[None], run_branch(branches, key))
        return own, rng

    one, by_device = PartitionSpec(), PartitionSpec(DEPTH)
    run = jax.jit(on_mesh(mesh, on_device, (one, one), (by_device, one)))
    held, rng = run(params_key, rng)
    everywhere = NamedSharding(mesh, one)
    empty = jax.jit(lambda: new_train_state((), (), (), (), ()), out_shardings=everywhere)()
    return close_state(plan, empty._replace(rng=rng), *held)


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
        part of the optimizer's state.

    Returns:
      `(params, opt_state, grad_norm)`, the global norm of the means.
    """
    layout = plan.layout
    devices = range(layout.num_devices)

    def mean(n, sums, num_grads):
        """The averaged gradients of device n's modules, and the norms of all their leaves."""
        modules = zip(layout.groups[n], layout.grads.unpack(n, sums), strict=True)
        own = {i: average(one, num_grads[i], plan.params[i]) for i, one in modules}
        known = {i: local_optimizer.norms(one) for i, one in own.items()}
        nothing = zeros(jax.eval_shape(local_optimizer.norms, plan.params))
        return layout.params.pack(n, tuple(own.values())), local_optimizer.view(known, nothing)

    def update(n, params, opt_state, grads, norms, trained):
        group = layout.groups[n]

        def seen(modules, others):
            return local_optimizer.view(dict(zip(group, modules, strict=True)), others)

        own = layout.params.unpack(n, params)
        old = plan.opt_packing.unpack(n, opt_state)
        updates, new = tx.update(
            seen(layout.params.unpack(n, grads), local_optimizer.stand_ins(plan.params, norms)),
            old,
            seen(own, local_optimizer.stand_ins(plan.params)),
        )
        if hold:
            updates = tuple(select(trained[i], one) for i, one in enumerate(updates))
            new = hold_back(tx, trained, new, old, plan.params)
        own = optax.apply_updates(own, tuple(updates[i] for i in group))
        return layout.params.pack(n, own), plan.opt_packing.pack(n, new)

    grads, norms = run_branch([partial(mean, n) for n in devices], sums, num_grads)
    norms = jax.lax.psum(norms, DEPTH)  # Others count as zero: a sum puts them together.
    branches = [partial(update, n) for n in devices]
    params, opt_state = run_branch(branches, params, opt_state, grads, norms, num_grads > 0)
    return params, opt_state, optax.tree.norm(norms)
