"""The optimizer's part of a run on a mesh, on every device for its own modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sideways_jax.devices.module_groups import of_own_modules
from sideways_jax.devices.packing import Packed
from sideways_jax.pipeline import local_optimizer
from sideways_jax.pipeline.plan import Plan
from sideways_jax.tools.trees import PyTree, average, select, squared_norm
from sideways_jax.training.division import Divided


def init_optimizer(plan: Plan, params: Packed) -> Packed:
    """The optimizer's state of one device; to be called inside `shard_map`."""
    return local_optimizer.init_on_device(
        plan.optimizer,
        plan.layout.params.unpack,
        lambda n, opt_state, _: plan.opt_packing.pack(n, opt_state),
        params,
    )


def update_on_device(
    plan: Plan,
    params: Packed,
    opt_state: Packed,
    sums: Packed,
    num_grads: jax.Array,
    *,
    scale: int = 1,
    hold: bool = False,
) -> tuple[Packed, Packed, jax.Array]:
    """One update of the weights, on one device; to be called inside `shard_map`.

    Args:
      plan: of the run.
      params, opt_state, sums: the slots of this device; sums of gradients over all replicas.
      num_grads: `[D]`, what the sum of each module is divided by for the mean.
      scale: what sums are multiplied with before that.
      hold: whether a module without any gradient, which there may be, keeps its weights and its
        part of the optimizer's state.

    Returns:
      `(params, opt_state, grad_norm)`, the global norm of the means.
    """
    layout = plan.layout
    counts = of_own_modules(layout.groups, num_grads)

    def read(n, params, opt_state, sums, counts):
        """Gradients, the optimizer's state and parameters of the modules of device n."""
        own = layout.params.unpack(n, params)
        total = jax.tree.map(lambda x: x * scale, layout.grads.unpack(n, sums))
        grads = tuple(map(average, total, counts[: len(own)], own))
        return grads, plan.opt_packing.unpack(n, opt_state), own

    def square(n, params, opt_state, sums, counts):
        grads, *_ = read(n, params, opt_state, sums, counts)
        return squared_norm(grads, like=plan.params)

    def finish(n, updates, new, params, opt_state, sums, counts):
        if hold:
            _, old, _ = read(n, params, opt_state, sums, counts)
            trained = dict(zip(layout.groups[n], counts > 0, strict=False))
            updates = tuple(map(select, trained.values(), updates))
            new = _held_back(plan.optimizer, n, trained, new, old)
        if layout.in_place:
            return layout.grads.put(n, sums, updates), plan.opt_packing.put(n, opt_state, new)
        own = optax.apply_updates(layout.params.unpack(n, params), updates)
        return layout.params.pack(n, own), plan.opt_packing.pack(n, new)

    (params_or_updates, opt_state), total = local_optimizer.update_on_device(
        plan.optimizer, read, square, finish, params, opt_state, sums, counts,
        even=layout.params.is_even,
    )  # fmt: skip
    if layout.in_place:
        # Updates have taken the place of sums, which nothing else needs. Parameters that are
        # changed in a branch would be copied for several devices.
        params = jax.tree.map(
            lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), params, params_or_updates
        )
    else:
        params = params_or_updates
    return params, opt_state, jnp.sqrt(total)


def _held_back(
    divided: Divided, n: int, trained: dict[int, jax.Array], new: PyTree, old: PyTree
) -> PyTree:
    """`Divided.hold_back` in the state of device n, which has a place for every leaf."""
    after, structure = jax.tree.flatten(new)
    before, held = jax.tree.leaves(old), divided.held(n)
    chosen = divided.hold_back(n, trained, [after[k] for k in held], [before[k] for k in held])
    for k, leaf in zip(held, chosen, strict=True):
        after[k] = leaf
    return jax.tree.unflatten(structure, after)
