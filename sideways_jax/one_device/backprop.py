"""Backpropagation, one frame at a time: the synchronous rule of section 3.3 (Eq. 1 and 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sideways_jax.rule.episode import Episode
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, accumulate, average, first_of, wide_zeros


def scan_episode(
    task: Task, params: tuple, state: tuple, frames: PyTree, targets: PyTree, rng: jax.Array | None
) -> Episode:
    """An episode of backprop as a `lax.scan` over frames, with the memory of a single one.

    Gradients and losses are added in `trees.wide` dtypes: float32 for bfloat16 parameters, which is
    twice their bytes for as long as the episode takes.

    An output is there in the step of its frame, so that it is paired with the target of that frame
    whatever `task.target` says.
    """

    def frame_loss(params, state, frame, y, frame_id):
        output, state = task.network.apply(
            params, state, frame, train=task.train, rng=rng, frame_id=frame_id
        )
        return task.loss_fn(output, y), (output, state)

    def body(carry, inputs):
        state, grads, loss = carry
        (frame_value, (output, state)), frame_grads = jax.value_and_grad(frame_loss, has_aux=True)(
            params, state, *inputs
        )
        return (state, *accumulate((grads, loss), (frame_grads, frame_value))), output

    num_frames = jax.tree.leaves(frames)[0].shape[0]
    frame_ids = jnp.arange(num_frames, dtype=jnp.int32)
    inputs = (frames, targets, frame_ids)
    loss_shape = jax.eval_shape(frame_loss, params, state, *first_of(inputs))[0]
    start = (jax.tree.map(jnp.asarray, state), *wide_zeros((params, loss_shape)))
    (state, grads, loss), outputs = jax.lax.scan(body, start, inputs)
    return Episode(
        grads=average(grads, num_frames, like=params),
        num_grads=jnp.full((task.depth,), num_frames, jnp.int32),
        loss=average(loss, num_frames),
        outputs=outputs,
        valid=jnp.ones((num_frames,), bool),
        state=state,
    )
