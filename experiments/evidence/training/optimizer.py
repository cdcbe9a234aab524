"""The paper's optimizer for runs whose program is compiled once: its rate and decay are data."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sideways_jax.tools.trees import PyTree
from sideways_jax.training.paper_optimizer import DIRECTIONS

CLIP = 1.0  # of every entry of a gradient, as in the paper
MOMENTUM = 0.9


class Settable(NamedTuple):
    """The state: what a run sets, and what the direction keeps."""

    rate: jax.Array  # float32
    decay: jax.Array  # float32; of the parameters at every update, decoupled from the rate
    warmup: jax.Array  # float32; updates in which the rate and the decay grow
    count: jax.Array  # int32
    direction: PyTree


class Statistics(NamedTuple):
    """Of the newest gradient, before it is clipped: float32."""

    mean: jax.Array  # over all entries
    norm: jax.Array


def settable(name: str) -> optax.GradientTransformation:
    """`sgd`, `momentum` or `adam` of the paper's optimizer, with clipping by value.

    For the update t = 0, 1, ..., with w_t = min(1, (t + 1) / warmup):

        theta <- theta - w_t * (rate * u_t + decay * theta)

    The decay is not multiplied by the rate (Loshchilov and Hutter, 2019, algorithm 2). A new state
    has the rate 0: `with_settings` sets it.
    """
    direction = DIRECTIONS[name](MOMENTUM)

    def init(params: PyTree) -> Settable:
        rate, decay, warmup = (jnp.zeros((), jnp.float32) for _ in range(3))
        return Settable(rate, decay, warmup, jnp.zeros((), jnp.int32), direction.init(params))

    def update(updates: PyTree, state: Settable, params: PyTree = None) -> tuple[PyTree, Settable]:
        clipped = jax.tree.map(lambda g: jnp.clip(g, -CLIP, CLIP), updates)
        steps, inner = direction.update(clipped, state.direction, params)
        now = jnp.minimum(1.0, (state.count + 1).astype(jnp.float32) / state.warmup)
        rate, decay = now * state.rate, now * state.decay
        changes = jax.tree.map(
            lambda u, p: -rate.astype(p.dtype) * u - decay.astype(p.dtype) * p, steps, params
        )
        return changes, state._replace(count=state.count + 1, direction=inner)

    return optax.GradientTransformation(init, update)


def with_settings(state: Settable, rate: float, decay: float = 0.0, warmup: int = 1) -> Settable:
    """The state with these numbers."""
    rate, decay, warmup = (jnp.asarray(x, jnp.float32) for x in (rate, decay, warmup))
    return state._replace(rate=rate, decay=decay, warmup=warmup)


def recording() -> optax.GradientTransformation:
    """Keeps `Statistics` of the newest gradient, and passes it on."""

    def init(params: PyTree) -> Statistics:
        del params
        return Statistics(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def update(
        updates: PyTree, state: Statistics, params: PyTree = None
    ) -> tuple[PyTree, Statistics]:
        del state, params
        leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(updates)]
        mean = sum((leaf.sum() for leaf in leaves), jnp.zeros((), jnp.float32))
        square = sum((jnp.square(leaf).sum() for leaf in leaves), jnp.zeros((), jnp.float32))
        count = sum(leaf.size for leaf in leaves)
        return updates, Statistics(mean / count, jnp.sqrt(square))

    return optax.GradientTransformation(init, update)
