"""The same episode on several devices, each with its share of the batch (data parallelism)."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sideways_jax.devices.exchange import key_of_replica, on_mesh
from sideways_jax.devices.layout import share_of
from sideways_jax.devices.mesh import DATA, check_mesh
from sideways_jax.devices.replicas import check_counters, mean_over_replicas
from sideways_jax.network.network import Network
from sideways_jax.rule.episode import Episode
from sideways_jax.tools.trees import PyTree, first_of, shape_of
from sideways_jax.training.train_state import Init


def episode(
    mesh: Mesh,
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
      mesh: with as many replicas as the batch is divided into.
      network: D modules.
      one: `one(params, state, frames, targets, rng) -> Episode`.
      params, state, frames, targets, rng: as of `Execution.episode`, of the whole batch.

    Raises:
      ValueError: if the batch does not divide, or for a state that replicas would count otherwise.
    """
    replicas, _ = check_mesh(mesh)
    if replicas == 1:  # The mesh may have no axis `data`.
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


def init_everywhere(mesh: Mesh, init: Init) -> Init:
    """`init`, with a train state that every device has."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def init_and_spread(key, frame, target=None):
        return jax.device_put(init(key, frame, target), everywhere)

    return init_and_spread
