"""Training on a mesh: parameters, optimizer and pipeline state stay on the device of their module.

In the `TrainState` of a sharded run `params`, `state` and `opt_state` are slots `[N, ...]` sharded
over `depth` (`plan.Placed`); so are the signals of an online run (`in_flight.py`).
`conversion.per_module` converts it to and from the one that every other execution has, with one
pytree for each module: what a checkpoint holds.
"""

from __future__ import annotations

import jax
import optax
from jax.sharding import Mesh, PartitionSpec

from sideways_jax.devices.exchange import on_mesh, own
from sideways_jax.devices.mesh import DEPTH, data_axis
from sideways_jax.pipeline.episode import episode_on_device
from sideways_jax.pipeline.plan import (
    close_state,
    groups_of,
    make_plan,
    open_state,
)
from sideways_jax.pipeline.start import init_state
from sideways_jax.pipeline.sums import counts
from sideways_jax.pipeline.update import update_on_device
from sideways_jax.rule.episode import check_episode
from sideways_jax.rule.in_flight import following
from sideways_jax.rule.schedules import Schedule
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import first_of, masked_mean
from sideways_jax.training.train_state import Training

SPEC = PartitionSpec


def make_training(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh,
    schedule: Schedule,
    groups: tuple[int, ...] | None,
) -> Training:
    """`init` and `train_step` for an update after each episode, on a mesh.

    Args:
      task, tx: what is trained, and by which transformation.
      mesh, schedule, groups: where and in which order.
    """
    network, data = task.network, data_axis(mesh)

    def init(key, frame, target=None):
        del target  # The pipeline starts empty in every episode.
        plan = make_plan(network, tx, mesh, groups, frame)
        return init_state(network, plan, mesh, key, frame)

    @jax.jit
    def train_step(train_state, frames, targets):
        num_frames = check_episode(task, frames, targets)
        sizes = groups_of(train_state, groups)
        plan = make_plan(network, tx, mesh, sizes, first_of(frames))
        held = open_state(plan, train_state)
        num_grads, valid = counts(task, num_frames)
        run = episode_on_device(task, mesh, schedule, plan.layout, keep_outputs=False)

        def on_device(params, state, opt_state, frames, targets, rng):
            params, state, opt_state = own((params, state, opt_state))
            sums = run(params, state, frames, targets, rng)
            params, opt_state, grad_norm = update_on_device(
                plan, params, opt_state, sums.grads, num_grads
            )
            result = (params, sums.state, opt_state), sums.losses, sums.metrics
            return *jax.tree.map(lambda x: x[None], result), grad_norm

        by_device, clip = SPEC(DEPTH), SPEC(None, data)
        held, losses, by_step, grad_norm = on_mesh(
            mesh,
            on_device,
            (by_device, by_device, by_device, clip, clip, SPEC()),
            (by_device, by_device, by_device, SPEC()),
        )(*held, frames, targets, jax.random.fold_in(train_state.rng, train_state.step))
        shown = {"loss": losses} | by_step
        metrics = {name: masked_mean(values[-1], valid) for name, values in shown.items()}
        train_state = train_state._replace(
            step=train_state.step + 1, frames=following(train_state.frames, num_frames)
        )
        return close_state(plan, train_state, *held), metrics | {"grad_norm": grad_norm}

    return Training(init, train_step)
