"""Blocking backprop on a stream that does not wait: what Sideways is compared with (Figure 3).

A frame needs D steps on its way up and D-1 on its way down, one module a step. Until its update is
done the network takes no other: of 2D-1 frames that arrive, 2(D-1) are dropped. Its output is there
after D steps and is shown until the next one is. Without training only the way up blocks, and of D
frames D-1 are dropped.

All streams of a batch have one clock. It does not start anew with a stream: what another stream
left running is finished first.

The clock is a table (`clock`); `step.make_train_step(rule="backprop", update_every=1)` follows it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sideways_jax.network.network import Network
from sideways_jax.rule.in_flight import following, frame_numbers
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, each_example, masked_mean, norm, select, zeros
from sideways_jax.training.optimizer_check import check_optimizer
from sideways_jax.training.streams import (
    Outputs,
    check_in_flight,
    check_stream,
    example_metrics,
    result,
    stream_metrics,
)
from sideways_jax.training.train_state import Training, new_train_state


class Clock(NamedTuple):
    """Which frame is taken and whose output is shown at every step; numbers from 0, -1 for none."""

    taken: np.ndarray  # int[T]
    shown: np.ndarray  # int[T]

    @property
    def dropped(self) -> np.ndarray:
        """bool[T], whether the frame that arrives is lost."""
        return self.taken < 0


def period(depth: int, *, train: bool) -> int:
    """How many frames arrive while one is worked on, that one included: 2D-1, or D without update.

    >>> period(5, train=True), period(5, train=False)
    (9, 5)
    """
    return 2 * depth - 1 if train else depth


def clock(depth: int, num_frames: int, *, train: bool = True) -> Clock:
    """The clock of a blocking network of D modules, from the first frame of a stream on.

    Args:
      depth: D.
      num_frames: T, how many frames arrive, one a step.
      train: whether every frame that is taken is also learned from.

    >>> clock(2, 7).taken  # Each blocks for 2D-1 = 3 steps ...
    array([ 0, -1, -1,  3, -1, -1,  6])
    >>> clock(2, 7).shown  # ... and its output is there D-1 = 1 step after it came.
    array([-1,  0,  0,  0,  3,  3,  3])
    """
    each = period(depth, train=train)
    steps = np.arange(num_frames)
    taken = np.where(steps % each == 0, steps, -1)
    ready = steps - (depth - 1)
    return Clock(taken, np.where(ready >= 0, ready // each * each, -1))


class Held(NamedTuple):
    """The output on its way, and the one that is shown; `TrainState.in_flight` of blocking BP."""

    phase: jax.Array  # int32[], steps since a frame was taken
    coming: PyTree  # [B, ...], of the frame that is being worked on
    coming_frames: jax.Array  # int32[B], its number, -1 where its stream has ended meanwhile
    shown: PyTree  # [B, ...]
    shown_frames: jax.Array  # int32[B]


def init_held(network: Network, params: tuple, state: tuple, frame: PyTree) -> Held:
    """Nothing is being worked on, and nothing shown; `frame` is a batch `[B, ...]` or its shape."""
    output = network.activation_shapes(params, state, frame)[-1]
    batch = jax.tree.leaves(frame)[0].shape[:1]

    def nothing():  # Twice, not one array in two places: that could not be donated.
        return zeros(output), jnp.full(batch, -1, jnp.int32)

    return Held(jnp.zeros((), jnp.int32), *nothing(), *nothing())


def _tick(held: Held, output, frame_id, reset, depth, each) -> Held:
    """One step: `output` is that of the frame that comes now, if the network is free to take it."""
    taken = held.phase == 0
    batch = held.shown_frames.shape
    coming = select(taken, output, held.coming)
    # What is left of a stream that has ended is not shown to the next.
    coming_frames = jnp.where(
        taken, jnp.full(batch, frame_id), jnp.where(reset, -1, held.coming_frames)
    )
    shown_frames = jnp.where(reset, -1, held.shown_frames)
    ready = held.phase == depth - 1
    return Held(
        phase=(held.phase + 1) % each,
        coming=coming,
        coming_frames=coming_frames,
        shown=select(ready, coming, held.shown),
        shown_frames=jnp.where(ready, coming_frames, shown_frames),
    )


def make_training(task: Task, tx: optax.GradientTransformation, *, with_outputs: bool) -> Training:
    """Blocking BP on a stream: one exact update for every 2D-1 frames that arrive.

    A frame that is taken is learned from with its own target; what is shown is scored against the
    target of now. The update is made when the frame is taken, not 2D-2 steps later: its output does
    not depend on it and the next frame comes after it, so that both give the same.

    Args:
      task, tx: what is trained, and by which transformation.
      with_outputs: whether `train_step` returns `(train_state, metrics, Outputs)`.

    Returns:
      What `step.make_train_step(rule="backprop", update_every=1)` does. "loss" and the metrics are
      means over the steps that show an output, "grad_norm" one over updates.
    """
    network = task.network
    each = period(network.depth, train=True)

    def init(key, frame, target=None):
        del target
        params_key, rng = jax.random.split(key)
        params, state = network.init(params_key, frame)
        check_optimizer(tx, params)
        in_flight = init_held(network, params, state, frame)
        return new_train_state(params, state, tx.init(params), in_flight, rng)

    def learn(train_state, frame, target):
        def frame_loss(params):
            output, state = network.apply(
                params, train_state.state, frame, train=True, rng=train_state.rng,
                frame_id=train_state.frames,
            )  # fmt: skip
            return task.loss_fn(output, target), (output, state)

        grads, (output, state) = jax.grad(frame_loss, has_aux=True)(train_state.params)
        updates, opt_state = tx.update(grads, train_state.opt_state, train_state.params)
        params = optax.apply_updates(train_state.params, updates)
        return (params, state, opt_state), output, norm(grads)

    def wait(train_state, frame, target):
        del frame, target
        weights = train_state.params, train_state.state, train_state.opt_state
        none = jax.eval_shape(norm, train_state.params)
        return weights, train_state.in_flight.coming, jnp.zeros((), none.dtype)

    def body(train_state, inputs):
        frame, target, reset = inputs
        taken = train_state.in_flight.phase == 0
        (params, state, opt_state), output, grad_norm = jax.lax.cond(
            taken, learn, wait, train_state, frame, target
        )
        held = _tick(
            train_state.in_flight, output, train_state.frames, reset, network.depth, each
        )  # fmt: skip
        loss = masked_mean(each_example(task.loss_fn, held.shown, target), held.shown_frames >= 0)
        new = train_state._replace(
            step=train_state.step + taken.astype(jnp.int32),
            params=params,
            state=state,
            opt_state=opt_state,
            in_flight=held,
            frames=following(train_state.frames, 1),
        )
        shown = select(held.shown_frames >= 0, held.shown)
        return new, (shown, held.shown_frames, loss, grad_norm, taken)

    def train_step(train_state, frames, targets, reset=None):
        check_in_flight(train_state, Held)
        batch = train_state.in_flight.shown_frames.shape[0]
        reset = check_stream(batch, frames, targets, reset)
        train_state = train_state._replace(frames=jnp.asarray(train_state.frames, jnp.int32))
        train_state, (outputs, shown, losses, norms, taken) = jax.lax.scan(
            body, train_state, (frames, targets, reset)
        )
        metrics = stream_metrics(losses, shown, example_metrics(task, outputs, targets))
        metrics["grad_norm"] = masked_mean(norms, taken)
        return result(train_state, metrics, outputs, shown, with_outputs)

    return Training(init, train_step)


def show(
    network: Network,
    params: tuple,
    state: tuple,
    held: Held,
    frames: PyTree,
    first_frame_id: jax.Array | int = 0,
    reset: jax.Array | None = None,
) -> tuple[Held, Outputs]:
    """Blocking inference: of D frames that arrive one is used, with the weights as they are.

    Args:
      network: D modules, which run with `train=False`.
      params, state: tuples of D pytrees.
      held: `init_held`, or what the call before gave.
      frames: `[K, B, ...]`.
      first_frame_id: the number of the first of them.
      reset: bool `[K, B]`, where the frame of an example is the first of another stream.
    """
    num_frames, batch = jax.tree.leaves(frames)[0].shape[:2]
    if reset is None:
        reset = jnp.zeros((num_frames, batch), bool)

    def body(held, inputs):
        frame, frame_id, reset = inputs
        output = jax.lax.cond(
            held.phase == 0,
            lambda frame: network.apply(params, state, frame)[0],
            lambda _: held.coming,
            frame,
        )
        each = period(network.depth, train=False)
        held = _tick(held, output, frame_id, reset, network.depth, each)
        shown = select(held.shown_frames >= 0, held.shown)
        return held, Outputs(shown, held.shown_frames)

    frame_ids = frame_numbers(first_frame_id, num_frames)
    return jax.lax.scan(body, held, (frames, frame_ids, reset))
