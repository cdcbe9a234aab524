"""The same episode on several devices, each with its share of the batch (data parallelism)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.exchange import key_of_replica, on_mesh
from sideways_jax.devices.layout import share_of
from sideways_jax.devices.mesh import DATA, check_mesh
from sideways_jax.devices.replicas import check_counters, mean_over_replicas
from sideways_jax.network.network import Network
from sideways_jax.one_device import per_episode
from sideways_jax.rule.episode import Episode
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, first_of, shape_of
from sideways_jax.training.train_state import Init, Training


def check(mesh: Mesh | None, name: str) -> None:
    """Raises ValueError for a mesh that divides modules; `name` is that of the execution."""
    if mesh is not None and check_mesh(mesh, name)[1] > 1:
        raise ValueError(
            f"mesh={dict(mesh.shape)}: execution={name!r} divides batches, not modules; use "
            "make_mesh(1, data=n), or another execution"
        )


def episode(
    mesh: Mesh | None,
    network: Network,
    one: Callable[..., Episode],
    params: tuple,
    state: tuple,
    frames: PyTree,
    targets: PyTree,
    rng: jax.Array | None,
) -> Episode:
    """The episode that `one` computes, over the axis `data` of a mesh.

    As on every mesh, a replica has statistics of its share of the batch, of which running means are
    averaged, and dropout masks of its own.

    Args:
      mesh: with as many replicas as the batch is divided into; None for one device.
      network: D modules.
      one: `one(params, state, frames, targets, rng) -> Episode`.
      params, state, frames, targets, rng: as of `Execution.episode`, of the whole batch.

    Raises:
      ValueError: if the batch does not divide, or for a state that replicas would count otherwise.
    """
    replicas = 1 if mesh is None else check_mesh(mesh)[0]
    if mesh is None or replicas == 1:  # The mesh may have no axis `data`.
        return one(params, state, frames, targets, rng)
    frame = first_of(shape_of(frames))
    check_counters(network, shape_of(params), shape_of(state), frame, share_of(frame, mesh))

    def on_replica(params, state, frames, targets, rng):
        done = one(params, state, frames, targets, key_of_replica(rng, replicas))
        grads, loss, state = mean_over_replicas((done.grads, done.loss, done.state))
        return done._replace(grads=grads, loss=loss, state=state)

    whole, shares = PartitionSpec(), PartitionSpec(None, DATA)
    return on_mesh(
        mesh,
        on_replica,
        (whole, whole, shares, shares, whole),
        Episode(whole, whole, whole, shares, whole, whole),  # type: ignore[arg-type]
    )(params, state, frames, targets, rng)


def make_training(
    mesh: Mesh | None,
    task: Task,
    tx: optax.GradientTransformation,
    one: Callable[..., Episode],
) -> Training:
    """Training with one update per episode, with a train state that every device of the mesh has.

    Args:
      mesh, one: as of `episode`.
      task, tx: as of `per_episode.make_training`.
    """
    init, train_step = per_episode.make_training(task, tx, one)
    return Training(init if mesh is None else _init_everywhere(mesh, init), train_step)


def _init_everywhere(mesh: Mesh, init: Init) -> Init:
    everywhere = NamedSharding(mesh, PartitionSpec())

    def init_and_spread(key, frame, target=None):
        if jax.process_count() == 1:
            return jax.device_put(init(key, frame, target), everywhere)
        # Arrays cannot be put onto the devices of other processes: all of them draw the same.
        return jax.jit(lambda key: init(key, frame, target), out_shardings=everywhere)(key)

    return init_and_spread
