"""One update per episode, on one device."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sideways_jax.episode import Episode, align_targets
from sideways_jax.network import Network
from sideways_jax.train_state import TrainState
from sideways_jax.trees import masked_mean


def per_episode(
    network: Network,
    tx: optax.GradientTransformation,
    gradients: Callable[..., Episode],
    rule: str,
    target: str,
    metrics_fn: Callable | None,
) -> tuple[Callable, Callable]:
    """`(init, train_step)` as `step.make_train_step` describes them.

    Args:
      network, tx, rule, target, metrics_fn: see there.
      gradients: `gradients(params, state, frames, targets, rng=...)`, `step.episode_gradients`.
    """

    def init(key, frame, target_like=None):
        del target_like  # Every episode starts with an empty pipeline.
        params_key, rng = jax.random.split(key)
        params, state = network.init(params_key, frame)
        return TrainState(jnp.zeros((), jnp.int32), params, state, tx.init(params), (), rng)

    def train_step(train_state, frames, targets):
        rng = jax.random.fold_in(train_state.rng, train_state.step)
        episode = gradients(train_state.params, train_state.state, frames, targets, rng=rng)
        updates, opt_state = tx.update(episode.grads, train_state.opt_state, train_state.params)
        metrics = {"loss": episode.loss, "grad_norm": optax.tree.norm(episode.grads)}
        if metrics_fn is not None:
            if rule == "sideways":
                targets = align_targets(targets, network.depth, target)
            by_step = jax.vmap(metrics_fn)(episode.outputs, targets)
            metrics |= {name: masked_mean(one, episode.valid) for name, one in by_step.items()}
        new = train_state._replace(
            step=train_state.step + 1,
            params=optax.apply_updates(train_state.params, updates),
            state=episode.state,
            opt_state=opt_state,
        )
        return new, metrics

    return init, train_step
