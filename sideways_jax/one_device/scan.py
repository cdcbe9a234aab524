"""One computation step after the other, on one device: memory does not depend on the length K."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.rule import rule
from sideways_jax.rule.episode import Episode
from sideways_jax.rule.in_flight import InFlight, frame_numbers, init_in_flight, restart
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, accumulate, average, first_of, masked_mean, wide_zeros


class Steps(NamedTuple):
    """What several computation steps give, while the weights stay as they are."""

    in_flight: InFlight  # after the last
    fifos: tuple  # likewise
    state: tuple
    sums: tuple  # of the gradients, in float32 at least
    num_grads: jax.Array  # int32[D], over how many (examples of) steps
    outputs: PyTree  # [K, B, ...]
    targets: PyTree  # [K, B, ...], paired with the outputs
    losses: jax.Array  # [K]
    frames: jax.Array  # int32 [K] or [K, B], which frame the output is of, -1 for none


def steps(
    task: Task,
    params: tuple,
    state: tuple,
    in_flight: InFlight,
    frames: PyTree,
    targets: PyTree,
    first_frame_id: jax.Array | int,
    reset: jax.Array | None = None,
    *,
    rng: jax.Array | None,
    fifos: tuple = (),
    recompute: bool = True,
) -> Steps:
    """Repeats `rule.computation_step` over frames `[K, B, ...]`.

    Args:
      task: what is trained.
      params, state: tuples of D pytrees.
      in_flight: the pipeline before the first step.
      frames, targets: `[K, B, ...]`.
      first_frame_id: the number of the first frame.
      reset: bool `[K, B]`, where the pipeline restarts; None for one clock of the whole batch.
      rng: the key of the run, or None.
      fifos: what the modules have kept, with pipelined backprop.
      recompute: likewise, whether they keep inputs, or residuals.
    """

    def body(carry, inputs):
        in_flight, fifos, state, sums, num_grads = carry
        frame, target, frame_id, reset = inputs
        if reset is not None:
            in_flight = restart(in_flight, reset)
            frame_id = jnp.full(reset.shape, frame_id)
        paired = (target, *in_flight.targets)[-1]
        one = rule.computation_step(
            task.network, task.loss_fn, params, state, in_flight, frame, target, frame_id,
            train=task.train, rng=rng, fifos=fifos, recompute=recompute,
        )  # fmt: skip
        sums = accumulate(sums, one.grads)
        num_grads += one.trained.reshape(task.depth, -1).sum(-1, dtype=jnp.int32)
        carry = one.in_flight, one.fifos, one.state, sums, num_grads
        return carry, (one.output, paired, one.loss, one.frames[-1])

    num_frames = jax.tree.leaves(frames)[0].shape[0]
    frame_ids = frame_numbers(first_frame_id, num_frames)
    no_grads = jnp.zeros((task.depth,), jnp.int32)
    start = (in_flight, fifos, jax.tree.map(jnp.asarray, state), wide_zeros(params), no_grads)
    last, by_step = jax.lax.scan(body, start, (frames, targets, frame_ids, reset))
    return Steps(*last, *by_step)


def episode(
    task: Task,
    params: tuple,
    state: tuple,
    frames: PyTree,
    targets: PyTree,
    rng: jax.Array | None,
    recompute: bool = True,
) -> Episode:
    """An episode of Sideways or pipelined backprop from an empty pipeline.

    The reference execution. Arguments as for `steps`.
    """
    in_flight = init_in_flight(
        task.network, params, state, first_of(frames), first_of(targets),
        target_alignment=task.target,
    )  # fmt: skip
    fifos = ()
    if task.remembers:
        fifos = rule.empty_fifos(
            task.network, params, state, first_of(frames),
            train=task.train, rng=rng, recompute=recompute,
        )  # fmt: skip
    done = steps(
        task, params, state, in_flight, frames, targets, 0,
        rng=rng, fifos=fifos, recompute=recompute,
    )  # fmt: skip
    return Episode(
        # 1/gamma_i * sum_t: Eq. 5 with the mask.
        grads=tuple(map(average, done.sums, done.num_grads, params)),
        num_grads=done.num_grads,
        loss=masked_mean(done.losses, done.frames >= 0),
        outputs=done.outputs,
        valid=done.frames >= 0,
        state=done.state,
    )
