"""Online learning: weights that change while the stream goes on (sections 4.1 and 4.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sideways_jax.episode import check_episode
from sideways_jax.hold_back import hold_back
from sideways_jax.network import Network
from sideways_jax.train_state import TrainState
from sideways_jax.trees import PyTree, average, each_example, masked_mean, select


class Outputs(NamedTuple):
    """What a network shows at each of K steps of a stream: the newest output that there is."""

    outputs: PyTree  # [K, B, ...], zero where there is none yet
    frames: jax.Array  # int32[K, B], which frame of the run (from 0) it is of, -1 for none


def make_train_step(
    network: Network,
    tx: optax.GradientTransformation,
    *,
    init_in_flight: Callable,
    steps: Callable,
    update_every: int,
    target: str,
    metrics_fn: Callable | None,
    with_outputs: bool = False,
) -> tuple[Callable, Callable]:
    """`step.make_train_step` with `update_every`: the pipeline is carried on over the updates.

    A gradient is the mean over all steps and examples that have one, of each module for itself.

    Args:
      network, tx, update_every, target, metrics_fn: see there.
      init_in_flight: `init_in_flight(params, state, frame, target)`, the empty pipeline.
      steps: several computation steps with the same weights.
      with_outputs: whether `train_step` returns `(train_state, metrics, Outputs)`.
    """

    def init(key, frame, target_like=None):
        check_target(target, target_like)
        params_key, rng = jax.random.split(key)
        params, state = network.init(params_key, frame)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            state=state,
            opt_state=tx.init(params),
            in_flight=init_in_flight(params, state, frame, target_like),
            rng=rng,
        )

    def one_update(train_state, inputs):
        frames, targets, reset = inputs
        done = steps(
            train_state.params,
            train_state.state,
            train_state.in_flight,
            frames,
            targets,
            train_state.step * update_every,
            reset,
            train=True,
            rng=train_state.rng,
        )
        batch = reset.shape[1]
        grads = tuple(
            average(jax.tree.map(lambda x: x * batch, sums), num)
            for sums, num in zip(done.sums, done.num_grads, strict=True)
        )
        params, opt_state = _update(tx, train_state, grads, done.num_grads > 0)
        new = train_state._replace(
            step=train_state.step + 1,
            params=params,
            state=done.state,
            opt_state=opt_state,
            in_flight=done.in_flight,
        )
        by_step = done.outputs, done.targets, done.losses, done.frames
        return new, (by_step, optax.tree.norm(grads))

    def train_step(train_state, frames, targets, reset=None):
        batch = train_state.in_flight.activation_frames.shape[1]
        reset = check_stream(network, batch, frames, targets, reset, update_every)
        num_frames = reset.shape[0]
        split = jax.tree.map(
            lambda x: x.reshape((-1, update_every, *x.shape[1:])), (frames, targets, reset)
        )
        train_state, (by_step, grad_norms) = jax.lax.scan(one_update, train_state, split)
        outputs, paired, losses, shown = jax.tree.map(
            lambda x: x.reshape((num_frames, *x.shape[2:])), by_step
        )
        metrics = stream_metrics(outputs, paired, losses, shown, metrics_fn)
        metrics["grad_norm"] = jnp.mean(grad_norms)
        if with_outputs:
            return train_state, metrics, Outputs(outputs, shown)
        return train_state, metrics

    return init, train_step


def check_target(target: str, target_like: PyTree) -> None:
    """Raises ValueError if targets have to be carried along and nobody says what they are like."""
    if target == "origin" and target_like is None:
        raise ValueError(
            "update_every with target='origin' carries targets along with the pipeline: call "
            "init(key, frame, target) with a batch of targets or its shape"
        )


def check_stream(
    network: Network,
    batch: int,
    frames: PyTree,
    targets: PyTree,
    reset: jax.Array | None,
    update_every: int = 1,
) -> jax.Array:
    """The mask of restarts, bool `[K, B]`, if there is none: no restarts.

    Args:
      network: see above.
      batch: B, of what is in flight.
      frames, targets: `[K, B, ...]`.
      reset: `[K, B]` or None.
      update_every: how many frames an update takes.

    Raises:
      ValueError: unless all of them fit together.
    """
    check_episode(network, frames, targets, rule="online")
    shape = jax.tree.leaves(frames)[0].shape[:2]
    if len(shape) < 2 or shape[1] != batch:
        raise ValueError(
            f"frames {shape} do not fit the {batch} streams that `init` was called with: give "
            f"[K, {batch}, ...]"
        )
    if reset is None:
        reset = jnp.zeros(shape, bool)
    elif jnp.shape(reset) != shape:
        raise ValueError(f"reset has the shape {jnp.shape(reset)}, it must be [K, B] = {shape}")
    num_frames = shape[0]
    if num_frames % update_every:
        raise ValueError(
            f"{num_frames} frames do not divide into updates of update_every={update_every} "
            f"steps: give a multiple of {update_every} frames"
        )
    return jnp.asarray(reset)


def stream_metrics(outputs, targets, losses, shown, metrics_fn) -> dict[str, jax.Array]:
    """Means over all steps and examples that show an output.

    Args:
      outputs, targets: `[K, B, ...]`, paired.
      losses: `[K]`, mean over the examples with an output.
      shown: int32 `[K, B]`, -1 where there is none.
      metrics_fn: as in `step.make_train_step`, or None.
    """
    valid = shown >= 0
    count = valid.sum(axis=1)
    weighted = jnp.sum(losses * count.astype(losses.dtype))
    metrics = {"loss": average(weighted, valid.sum())}
    if metrics_fn is not None:

        def alone(outputs, targets):
            return each_example(metrics_fn, outputs, targets)

        by_example = jax.vmap(alone)(outputs, targets)
        metrics |= {name: masked_mean(one, valid) for name, one in by_example.items()}
    return metrics


def _update(tx, train_state, grads, trained):
    """New parameters and state of the optimiser; nothing moves in a module without gradients."""
    updates, opt_state = tx.update(grads, train_state.opt_state, train_state.params)
    updates = tuple(select(trained[i], update) for i, update in enumerate(updates))
    opt_state = hold_back(tx, trained, opt_state, train_state.opt_state, train_state.params)
    return optax.apply_updates(train_state.params, updates), opt_state
