"""What a device of a pipeline adds up over the steps, and what replicas make of it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.devices.mesh import DATA
from sideways_jax.devices.packing import Packed
from sideways_jax.rule import schedules
from sideways_jax.rule.task import Task, metrics_of
from sideways_jax.tools.trees import PyTree, each_example


class Sums(NamedTuple):
    """What one device knows after several steps of its replica: an episode, or part of a stream.

    Outputs, losses and metrics are those of the top device; on others they mean nothing.
    """

    grads: Packed  # sums over frames of the gradients of its modules
    state: Packed
    outputs: PyTree  # [K, B, ...], zero where there is none
    losses: jax.Array  # [K], likewise; [K, B] where every example has a clock of its own
    metrics: PyTree = ()  # likewise, by name


def counts(task: Task, num_frames: int) -> tuple[jax.Array, jax.Array]:
    """gamma_i and the validity of the outputs by step, as the clock tables have them."""
    if not task.is_pipelined:
        return jnp.full((task.depth,), num_frames, jnp.int32), jnp.ones((num_frames,), bool)
    table = schedules.sideways(num_frames, task.depth)
    return (
        jnp.asarray((table.backward >= 0).sum(0), jnp.int32),
        jnp.asarray(table.forward[:, -1] >= 0),
    )


def metrics_on_mesh(
    task: Task, output: PyTree, target: PyTree, replicas: int, *, per_example: bool
) -> dict[str, jax.Array]:
    """`task.metrics_fn` of one step's output `[B, ...]`, `[B]` each if `per_example`.

    Otherwise of the whole batch, which is put together from all replicas: not every metric is a
    mean over examples.
    """
    if task.metrics_fn is None:
        return {}
    if per_example:
        return each_example(partial(metrics_of, task), output, target)
    if replicas > 1:
        output, target = jax.tree.map(
            lambda x: jax.lax.all_gather(x, DATA, tiled=True), (output, target)
        )
    return metrics_of(task, output, target)
