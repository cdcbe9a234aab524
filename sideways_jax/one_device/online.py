"""Online learning on one device: weights that change while the stream goes on (4.1 and 4.5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sideways_jax.one_device.scan import steps
from sideways_jax.rule.fifo import Fifo, Remembered, stashes_weights
from sideways_jax.rule.in_flight import InFlight, following, init_in_flight
from sideways_jax.rule.rule import empty_fifos
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import average, norm, select
from sideways_jax.training.hold_back import hold_back
from sideways_jax.training.optimizer_check import check_optimizer
from sideways_jax.training.streams import (
    check_in_flight,
    check_stream,
    check_target,
    example_metrics,
    result,
    stream_metrics,
)
from sideways_jax.training.train_state import Training, new_train_state


def make_training(
    task: Task, tx: optax.GradientTransformation, *, update_every: int, with_outputs: bool,
    recompute: bool = True, stash_weights: bool = False,
) -> Training:  # fmt: skip
    """A pipeline with an update every `update_every` frames: the pipeline is carried on over them.

    A gradient is the mean over all steps and examples that have one, of each module for itself.

    Args:
      task, tx: what is trained, and by which transformation.
      update_every: frames from one update to the next.
      with_outputs: whether `train_step` returns `(train_state, metrics, Outputs)`.
      recompute, stash_weights: what modules keep, with pipelined backprop (`rule.empty_fifos`).
    """
    kind = Remembered if task.remembers else InFlight

    def init(key, frame, target=None):
        check_target(task.target, target)
        params_key, rng = jax.random.split(key)
        params, state = task.network.init(params_key, frame)
        check_optimizer(tx, params, hold=True)
        in_flight: Any = init_in_flight(
            task.network, params, state, frame, target,
            target_alignment=task.target, per_example=True,
        )  # fmt: skip
        if kind is Remembered:
            fifos = empty_fifos(
                task.network, params, state, frame,
                rng=rng, recompute=recompute, stash_weights=stash_weights,
            )  # fmt: skip
            in_flight = Remembered(in_flight, fifos)
        return new_train_state(params, state, tx.init(params), in_flight, rng)

    def one_update(train_state, inputs):
        frames, targets, reset = inputs
        in_flight, fifos = _apart(train_state.in_flight)
        done = steps(
            task, train_state.params, train_state.state, in_flight, frames, targets,
            train_state.frames, reset, rng=train_state.rng, fifos=fifos, recompute=recompute,
        )  # fmt: skip
        batch = reset.shape[1]
        grads = tuple(
            average(jax.tree.map(lambda x: x * batch, sums), num, params)
            for sums, num, params in zip(done.sums, done.num_grads, train_state.params, strict=True)
        )
        params, opt_state = _update(tx, train_state, grads, done.num_grads > 0)
        new = train_state._replace(
            step=train_state.step + 1,
            params=params,
            state=done.state,
            opt_state=opt_state,
            in_flight=Remembered(done.in_flight, done.fifos) if fifos else done.in_flight,
            frames=following(train_state.frames, update_every),
        )
        metrics = example_metrics(task, done.outputs, done.targets)
        shown = done.frames, done.losses, metrics, done.outputs if with_outputs else ()
        return new, (shown, norm(grads))

    def train_step(train_state, frames, targets, reset=None):
        check_in_flight(train_state, kind)
        in_flight, fifos = _apart(train_state.in_flight)
        _check_stash(fifos, stash_weights)
        batch = in_flight.activation_frames.shape[1]
        reset = check_stream(batch, frames, targets, reset, update_every)
        split = jax.tree.map(
            lambda x: x.reshape((-1, update_every, *x.shape[1:])), (frames, targets, reset)
        )
        train_state = train_state._replace(frames=jnp.asarray(train_state.frames, jnp.int32))
        train_state, (by_step, grad_norms) = jax.lax.scan(one_update, train_state, split)
        shown, losses, by_example, outputs = jax.tree.map(
            lambda x: x.reshape((-1, *x.shape[2:])), by_step
        )
        metrics = stream_metrics(losses, shown, by_example)
        metrics["grad_norm"] = jnp.mean(grad_norms)
        return result(train_state, metrics, outputs, shown, with_outputs)

    return Training(init, train_step)


def _apart(in_flight: InFlight | Remembered) -> tuple[InFlight, tuple]:
    """What is in flight, and what modules keep."""
    return in_flight if isinstance(in_flight, Remembered) else (in_flight, ())


def _check_stash(fifos: tuple, stash_weights: bool) -> None:
    """Raises ValueError if this train state keeps weights and should not, or the reverse."""
    filled = [fifo for fifo in fifos if isinstance(fifo, Fifo) and jax.tree.leaves(fifo.kept)]
    if any(stashes_weights(fifo) != stash_weights for fifo in filled):
        raise ValueError(
            f"this train state was made with stash_weights={not stash_weights}, and is trained "
            f"with Scan(stash_weights={stash_weights}): make both with the same"
        )


def _update(tx, train_state, grads, trained):
    """New parameters and state of the optimizer; nothing moves in a module without gradients."""
    updates, opt_state = tx.update(grads, train_state.opt_state, train_state.params)
    updates = tuple(select(trained[i], update) for i, update in enumerate(updates))
    opt_state = hold_back(tx, trained, opt_state, train_state.opt_state, train_state.params)
    return optax.apply_updates(train_state.params, updates), opt_state
