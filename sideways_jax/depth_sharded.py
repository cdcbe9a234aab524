"""Episodes on a mesh with a `depth` axis: every device runs its own modules, all at the same time.

One `lax.scan` over the steps of a clock table inside `jax.shard_map`. In its body every device runs
its own branch of a `lax.switch`: the forward pass and the vjp of its modules, on what has arrived.
Then activations are permuted one device up and pseudo-gradients one device down.

Shards are not tracked as varying or not (`check_vma=False`): every device differentiates its own
modules inside the step, nothing is ever differentiated through the pipeline, and no sum over
devices may be inserted for parameters; jax-ml/jax#40823 is what can go wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sideways_jax import placement, schedules
from sideways_jax.episode import Episode, paired_targets
from sideways_jax.layout import DATA, DEPTH, Layout, Sums, make_layout, pack, unpack
from sideways_jax.layout import report as layout_report
from sideways_jax.mesh import check_mesh, data_axis
from sideways_jax.network import Network
from sideways_jax.packing import Packed
from sideways_jax.replicas import check_counters
from sideways_jax.sharded_backprop import backprop_steps
from sideways_jax.sharded_sideways import (
    episode_numbers,
    metrics_of,
    no_signals,
    sideways_steps,
)
from sideways_jax.task import Task
from sideways_jax.trees import PyTree, average, first_of, masked_mean, shape_of


class Schedule(NamedTuple):
    """The order of backprop's passes, and what a stage keeps; Sideways has none."""

    name: str | None = None  # "blocking", "gpipe" or "1f1b"
    recompute: bool = True  # keep inputs and run forward passes again, rather than keep residuals


def episode(
    task: Task,
    mesh: Mesh,
    schedule: Schedule,
    groups: tuple[int, ...] | None,
    params: tuple,
    state: tuple,
    frames: PyTree,
    targets: PyTree,
    rng: jax.Array | None,
    *,
    bubble: float = 0.0,
) -> Episode:
    """An episode on a mesh, in one jitted program, which is kept for the next call.

    Args:
      task: what is trained.
      mesh, schedule, groups: where and in which order.
      params, state: tuples of D pytrees.
      frames, targets: `[K, B, ...]`.
      rng: the key of the episode, or None.
      bubble: the value of padding and of what has not arrived; tests put NaN there.
    """
    where = task, mesh, schedule, groups, bubble
    return _episode(where, params, state, frames, targets, rng)


@partial(jax.jit, static_argnums=0)
def _episode(where, params, state, frames, targets, rng):
    task, mesh, schedule, groups, bubble = where
    layout = plan(task.network, params, state, first_of(frames), mesh, groups)
    data = data_axis(mesh)
    run = episode_on_device(
        task._replace(metrics_fn=None), mesh, schedule, layout, keep_outputs=True, bubble=bubble
    )

    def on_device(params, state, frames, targets, rng):
        return jax.tree.map(lambda x: x[None], run(*own((params, state)), frames, targets, rng))

    spec, by_device = PartitionSpec, PartitionSpec(DEPTH)
    sums = on_mesh(
        mesh,
        on_device,
        (by_device, by_device, spec(None, data), spec(None, data), spec()),
        Sums(by_device, by_device, spec(DEPTH, None, data), by_device, by_device),
    )(
        pack(layout.params, layout.groups, params, padding=bubble),
        pack(layout.state, layout.groups, state, padding=bubble),
        frames,
        targets,
        rng,
    )
    num_grads, valid = counts(task, jax.tree.leaves(frames)[0].shape[0])
    total = unpack(layout.grads, layout.groups, sums.grads)
    return Episode(
        grads=tuple(map(average, total, num_grads, params)),
        num_grads=num_grads,
        loss=masked_mean(sums.losses[-1], valid),
        outputs=jax.tree.map(lambda x: x[-1], sums.outputs),
        valid=valid,
        state=unpack(layout.state, layout.groups, sums.state),
    )


def plan(
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
      mesh: with the axes `depth` and, maybe, `data`.
      groups: how many consecutive modules each device takes; None balances counted costs.
      train: whether there is a backward pass, which costs something, and a state that changes.

    Raises:
      ValueError: if the modules, their states or the batch do not go into the mesh.
    """
    replicas, num_devices = check_mesh(mesh)
    local = _share_of(frame, mesh)
    params, state = shape_of(params), shape_of(state)
    if train and replicas > 1:
        check_counters(network, params, state, shape_of(frame), local)
    if groups is None:
        costs = placement.count_costs(network, params, state, local, train=train)
        placed = placement.balance(costs, num_devices)
    else:
        placed = placement.from_sizes(groups, network.depth, num_devices)
    return make_layout(network, placed, params, state, local)


def report(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    mesh: Mesh,
    groups: Sequence[int] | None = None,
) -> str:
    """A table of which modules every device has, their share of the work, and what padding costs.

    Arguments and errors are those of `plan`. Bytes are given as used/held: every device holds as
    much as the largest needs, the optimiser's state goes like the parameters.
    """
    layout = plan(network, params, state, frame, mesh, groups)
    costs = placement.count_costs(
        network, shape_of(params), shape_of(state), _share_of(frame, mesh)
    )
    return layout_report(layout, costs)


def _share_of(frame: PyTree, mesh: Mesh) -> PyTree:
    """The shape of the part of a batch of frames that one replica gets."""
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


def episode_on_device(
    task: Task,
    mesh: Mesh,
    schedule: Schedule,
    layout: Layout,
    *,
    keep_outputs: bool,
    bubble: float = 0.0,
) -> Callable[..., Sums]:
    """The function `(params, state, frames, targets, rng) -> Sums` that every device runs.

    Gradients and losses are reduced over `data` once, after the last step, and so are running
    statistics, which replicas update from their own share of the batch.
    """
    replicas, _ = check_mesh(mesh)

    def run(params: Packed, state: Packed, frames, targets, rng) -> Sums:
        rng = key_of_replica(rng, replicas)
        num_frames = jax.tree.leaves(frames)[0].shape[0]
        paired = paired_targets(task, targets)
        if task.rule == "sideways":
            sums, _ = sideways_steps(
                task, layout, params, state, no_signals(layout, bubble), frames, paired,
                episode_numbers(num_frames, task.depth), rng=rng, keep_outputs=keep_outputs,
                replicas=replicas, bubble=bubble,
            )  # fmt: skip
        else:
            table = schedules.make(schedule.name, num_frames, layout.num_devices)
            sums = backprop_steps(
                task.network, task.loss_fn, layout, table, params, state, frames, targets,
                recompute=schedule.recompute, train=task.train, rng=rng, bubble=bubble,
            )  # fmt: skip
            metrics = jax.lax.map(
                lambda one: metrics_of(task, *one, replicas, per_example=False),
                (sums.outputs, paired),
            )
            sums = sums._replace(metrics=metrics, outputs=sums.outputs if keep_outputs else ())
        if replicas == 1:
            return sums
        return sums._replace(
            grads=jax.lax.pmean(sums.grads, DATA),
            state=reduced(sums.state),
            losses=jax.lax.pmean(sums.losses, DATA),
        )

    return run


def key_of_replica(rng: jax.Array | None, replicas: int) -> jax.Array | None:
    """The key that masks of dropout are drawn from: each replica has its own."""
    if rng is None or replicas == 1:
        return rng
    return jax.random.fold_in(rng, jax.lax.axis_index(DATA))


def counts(task: Task, num_frames: int) -> tuple[jax.Array, jax.Array]:
    """gamma_i and the validity of the outputs by step, as the clock tables have them."""
    if task.rule == "backprop":
        return jnp.full((task.depth,), num_frames, jnp.int32), jnp.ones((num_frames,), bool)
    table = schedules.sideways(num_frames, task.depth)
    return (
        jnp.asarray((table.backward >= 0).sum(0), jnp.int32),
        jnp.asarray(table.forward[:, -1] >= 0),
    )


def on_mesh(mesh: Mesh, function: Callable, in_specs: PyTree, out_specs: PyTree) -> Callable:
    """`function`, run by every device of the mesh on its shards."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def own(tree: PyTree) -> PyTree:
    """This device's row of arrays that are sharded over `depth`."""
    return jax.tree.map(lambda x: x[0], tree)


def reduced(state: Packed) -> Packed:
    """Running statistics, as means over replicas; integers, such as counters, agree already."""
    return {
        name: jax.lax.pmean(v, DATA) if jnp.issubdtype(v.dtype, jnp.inexact) else v
        for name, v in state.items()
    }
