"""Plain data parallelism: every device has the whole network and a share of the batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax import step
from sideways_jax.devices.exchange import on_mesh
from sideways_jax.devices.mesh import DATA
from sideways_jax.network.network import Network
from sideways_jax.one_device import per_episode
from sideways_jax.rule.task import LossFn, Task

CLIP = PartitionSpec(None, DATA)  # frames and targets [K, B, ...]


def make_train_step(
    network: Network,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    execution: str,
    mesh: Mesh,
) -> tuple[Callable, Callable]:
    """`step.make_train_step(rule="backprop")` on the axis `data` of a mesh.

    Each device back-propagates its share of every batch; the gradients are averaged once a clip.
    It is for networks without state, like Simple-CNN: running statistics would differ by device.

    Args:
      network: D modules without state.
      loss_fn: `loss_fn(output, target) -> scalar`, the mean over the batch.
      tx: the optimizer.
      execution: "scan" or "time_parallel", on each device.
      mesh: with an axis `data`, which the batch can be divided by.
    """

    def on_device(params, state, frames, targets):
        one = step.episode_gradients(
            network, loss_fn, params, state, frames, targets, rule="backprop",
            execution=execution,
        )  # fmt: skip
        return one._replace(
            grads=jax.lax.pmean(one.grads, DATA), loss=jax.lax.pmean(one.loss, DATA)
        )

    everywhere = PartitionSpec()

    def episode(params, state, frames, targets, rng):
        del rng
        if jax.tree.leaves(state):
            raise ValueError("data_parallel is for networks without state; this one has some")
        # With check_vma the transposition would sum gradients over devices frame by frame.
        result = step.Episode(
            grads=everywhere, num_grads=everywhere, loss=everywhere, outputs=CLIP,
            valid=everywhere, state=everywhere,
        )  # fmt: skip
        run = on_mesh(mesh, on_device, (everywhere, everywhere, CLIP, CLIP), result)
        return run(params, state, frames, targets)

    task = Task(network, loss_fn, "backprop")
    init, train_step = per_episode.make_training(task, tx, episode)

    def init_everywhere(key, frame):
        make = jax.jit(lambda key: init(key, frame), out_shardings=NamedSharding(mesh, everywhere))
        return make(key)

    return init_everywhere, train_step
