"""Episodes on a mesh with a `depth` axis: every device runs its own modules, all at the same time.

One `lax.scan` over the steps of a clock table inside `jax.shard_map`. In its body every device runs
its own branch of a `lax.switch`: the forward pass and the vjp of its modules, on what has arrived.
Then activations are permuted one device up and pseudo-gradients one device down.

Shards are not tracked as varying or not (`check_vma=False`): every device differentiates its own
modules inside the step, nothing is ever differentiated through the pipeline, and no sum over
devices may be inserted for parameters; jax-ml/jax#40823 is what can go wrong with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from sideways_jax.devices.exchange import key_of_replica, on_mesh, own
from sideways_jax.devices.layout import Layout, pack, place, unpack
from sideways_jax.devices.mesh import DATA, DEPTH, check_mesh, data_axis
from sideways_jax.devices.packing import Packed
from sideways_jax.devices.replicas import mean_over_replicas
from sideways_jax.pipeline.backprop_stage import backprop_steps
from sideways_jax.pipeline.sideways_stage import episode_numbers, sideways_steps
from sideways_jax.pipeline.signals import no_signals
from sideways_jax.pipeline.sums import Sums, counts, metrics_on_mesh
from sideways_jax.rule import schedules
from sideways_jax.rule.episode import Episode, paired_targets
from sideways_jax.rule.schedules import Schedule
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, average, first_of, masked_mean


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
    """An episode on a mesh, in one jitted program.

    The program is kept for calls with the same task on the same mesh, so that what the functions of
    a task close over counts as constant. Of a task that cannot be hashed nothing is kept.

    Args:
      task: what is trained.
      mesh, schedule, groups: where and in which order.
      params, state: tuples of D pytrees.
      frames, targets: `[K, B, ...]`.
      rng: the key of the episode, or None.
      bubble: the value of padding and of what has not arrived; tests put NaN there.
    """
    where = task, mesh, schedule, groups, bubble
    try:
        program = _kept(*where)
    except TypeError:  # Something in the task has no hash.
        program = _program(*where)
    return program(params, state, frames, targets, rng)


def _program(*where) -> Callable[..., Episode]:
    return jax.jit(partial(_episode, *where))


_kept = functools.lru_cache(maxsize=16)(_program)


def _episode(task, mesh, schedule, groups, bubble, params, state, frames, targets, rng):
    layout = place(task.network, params, state, first_of(frames), mesh, groups)
    data = data_axis(mesh)
    run = episode_on_device(
        task._replace(metrics_fn=None), mesh, schedule, layout, keep_outputs=True, bubble=bubble
    )

    def on_device(params, state, frames, targets, rng):
        return jax.tree.map(lambda x: x[None], run(*own((params, state)), frames, targets, rng))

    spec: Any = PartitionSpec  # Any: records that hold arrays hold specifications too.
    by_device = spec(DEPTH)
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
        if task.is_pipelined:
            sums, _, _ = sideways_steps(
                task, layout, params, state, no_signals(layout, bubble), frames, paired,
                episode_numbers(num_frames, task.depth), rng=rng, keep_outputs=keep_outputs,
                replicas=replicas, bubble=bubble, recompute=schedule.recompute,
            )  # fmt: skip
        else:
            table = schedules.make(schedule.name, num_frames, layout.num_devices)
            sums = backprop_steps(
                task, layout, table, params, state, frames, targets,
                recompute=schedule.recompute, rng=rng, bubble=bubble,
            )  # fmt: skip
            metrics = jax.lax.map(
                lambda one: metrics_on_mesh(task, one[0], one[1], replicas, per_example=False),
                (sums.outputs, paired),
            )
            sums = sums._replace(metrics=metrics, outputs=sums.outputs if keep_outputs else ())
        if replicas == 1:
            return sums
        return sums._replace(
            grads=jax.lax.pmean(sums.grads, DATA),
            state=mean_over_replicas(sums.state),
            losses=jax.lax.pmean(sums.losses, DATA),
        )

    return run
