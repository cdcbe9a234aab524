"""One update per episode, on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from sideways_jax.rule.episode import Episode, check_episode, paired_targets
from sideways_jax.rule.in_flight import following
from sideways_jax.rule.task import Task, metrics_of
from sideways_jax.tools.trees import masked_mean, norm
from sideways_jax.training.optimizer_check import check_optimizer
from sideways_jax.training.train_state import Training, new_train_state


def make_training(
    task: Task, tx: optax.GradientTransformation, episode: Callable[..., Episode]
) -> Training:
    """`init` and `train_step` for an update after each episode.

    Args:
      task, tx: what is trained, and by which transformation.
      episode: `episode(params, state, frames, targets, rng) -> Episode`.
    """

    def init(key, frame, target=None):
        del target  # Every episode starts with an empty pipeline.
        params_key, rng = jax.random.split(key)
        params, state = task.network.init(params_key, frame)
        check_optimizer(tx, params)
        return new_train_state(params, state, tx.init(params), (), rng)

    def train_step(train_state, frames, targets):
        check_episode(task, frames, targets)
        rng = jax.random.fold_in(train_state.rng, train_state.step)
        one = episode(train_state.params, train_state.state, frames, targets, rng)
        updates, opt_state = tx.update(one.grads, train_state.opt_state, train_state.params)
        metrics = {"loss": one.loss, "grad_norm": norm(one.grads)}
        if task.metrics_fn is not None:
            by_step = jax.vmap(partial(metrics_of, task))(
                one.outputs, paired_targets(task, targets)
            )
            metrics |= {name: masked_mean(values, one.valid) for name, values in by_step.items()}
        new = train_state._replace(
            step=train_state.step + 1,
            params=optax.apply_updates(train_state.params, updates),
            state=one.state,
            opt_state=opt_state,
            frames=following(jnp.asarray(train_state.frames, jnp.int32), len(one.valid)),
        )
        return new, metrics

    return Training(init, train_step)
