"""Streams of frames: checks of their shapes, and the metrics and outputs of a train step."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax.rule.episode import check_batch, check_clip
from sideways_jax.rule.in_flight import InFlight, Numbers, frame_numbers, restart, tick
from sideways_jax.rule.task import Task, metrics_of
from sideways_jax.tools.trees import PyTree, average, each_example, masked_mean, wide
from sideways_jax.training.train_state import TrainState

T = TypeVar("T", bound=Any)  # what is in flight: `InFlight`, or `ShardedInFlight`


class Outputs(NamedTuple):
    """The newest output of a network at each of K steps of a stream."""

    outputs: PyTree  # [K, B, ...], zero where there is none yet
    frames: jax.Array  # int32[K, B], the frame of the run (from 0) it belongs to, -1 for none


def check_target(target: str, target_like: PyTree) -> None:
    """Raises ValueError if targets have to be carried along and their shape is not given."""
    if target == "origin" and target_like is None:
        raise ValueError(
            "update_every with target='origin' carries targets along with the pipeline: call "
            "init(key, frame, target) with a batch of targets or its shape"
        )


def check_recompute(recompute: bool | None, update_every: int) -> None:
    """Raises ValueError for residuals on a stream: they would be of weights that have changed."""
    if recompute is False:
        raise ValueError(
            f"recompute=False with update_every={update_every}: residuals are of the weights of "
            "then, mixed with those of now wherever a module uses its parameters as they are; "
            "leave it out, keep the weights of then as well on one device with "
            "Scan(recompute=False, stash_weights=True), or train on clips with update_every=None"
        )


def check_in_flight(train_state: TrainState, kind: type) -> None:
    """Raises ValueError unless the signals in flight have the type of this execution."""
    held = train_state.in_flight
    if not isinstance(held, kind):
        what = f"has {type(held).__name__}" if held else "has nothing"
        raise ValueError(
            f"this train state {what} in flight, where {kind.__name__} is needed: update_every "
            "carries the pipeline on, so make it with `init` of the same make_train_step; for one "
            "from a mesh step.per_module makes the functions that convert it"
        )


def check_stream(
    batch: int, frames: PyTree, targets: PyTree, reset: jax.Array | None, update_every: int = 1
) -> jax.Array:
    """The mask of restarts, bool `[K, B]`; for None, no stream restarts.

    Args:
      batch: B, of the signals in flight.
      frames, targets: `[K, B, ...]`.
      reset: `[K, B]` or None.
      update_every: how many frames an update takes.

    Raises:
      ValueError: unless all of them fit together.
    """
    num_frames = check_clip(frames, targets)
    given = jnp.shape(jax.tree.leaves(frames)[0])[:2]
    if given[1:] != (batch,):
        raise ValueError(
            f"frames {given} do not fit the {batch} streams that `init` was called with: give "
            f"[K, {batch}, ...]"
        )
    check_batch(frames, targets, batch)
    shape = (num_frames, batch)
    if isinstance(reset, (list, tuple)):
        reset = np.asarray(reset)
    if reset is None:
        reset = jnp.zeros(shape, bool)
    elif jnp.shape(reset) != shape:
        raise ValueError(f"reset has the shape {jnp.shape(reset)}, it must be [K, B] = {shape}")
    elif not jnp.issubdtype(jnp.result_type(reset), jnp.bool_):
        raise ValueError(
            f"reset has dtype {jnp.result_type(reset)}: give bool, True where the frame of an "
            "example is the first of another stream"
        )
    if num_frames % update_every:
        raise ValueError(
            f"{num_frames} frames do not divide into updates of update_every={update_every} "
            f"steps: give a multiple of {update_every} frames"
        )
    return jnp.asarray(reset)


def stream_numbers(
    task: Task, in_flight: T, reset: jax.Array, first_frame_id: jax.Array
) -> tuple[T, Numbers]:
    """What every module works on while frames with these resets, `[K, B]`, come in.

    Args:
      task: what is trained.
      in_flight: `InFlight` or `ShardedInFlight`, with frame numbers per example.
      reset: bool `[K, B]`.
      first_frame_id: the number of the first frame.

    Returns:
      `in_flight` with the frame numbers after these steps, and `Numbers` `[K, D, B]`.
    """

    def body(numbers: InFlight, inputs: tuple) -> tuple[InFlight, Numbers]:
        frame_id, reset = inputs
        frame_id = jnp.full(reset.shape, frame_id)
        emptied = restart(numbers, reset)
        return tick(task.network.wiring, emptied, frame_id, keeps_inputs=task.remembers)

    frame_ids = frame_numbers(first_frame_id, len(reset))
    before = in_flight.activation_frames, in_flight.pseudo_gradient_frames
    after, numbers = jax.lax.scan(body, InFlight((), (), *before, ()), (frame_ids, reset))
    moved = in_flight._replace(
        activation_frames=after.activation_frames,
        pseudo_gradient_frames=after.pseudo_gradient_frames,
    )
    return moved, numbers


def paired_in_stream(in_flight: T, targets: PyTree) -> tuple[T, PyTree]:
    """Targets `[K, ...]` by the step of the output they belong to; the last D-1 are carried on."""
    late = len(in_flight.targets)
    if not late:
        return in_flight, targets
    line = jax.tree.map(
        lambda new, *old: jnp.concatenate([jnp.stack(old[::-1]), new]), targets, *in_flight.targets
    )
    newest = tuple(jax.tree.map(lambda x, i=i: x[-1 - i], line) for i in range(late))
    return in_flight._replace(targets=newest), jax.tree.map(lambda x: x[:-late], line)


def example_metrics(task: Task, outputs: PyTree, targets: PyTree) -> dict[str, jax.Array]:
    """`task.metrics_fn` of every example, `[K, B]`, from outputs and targets `[K, B, ...]`."""
    if task.metrics_fn is None:
        return {}
    return jax.vmap(partial(each_example, partial(metrics_of, task)))(outputs, targets)


def stream_metrics(
    losses: jax.Array, shown: jax.Array, by_example: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Means over all steps and examples that show an output.

    Args:
      losses: `[K]`, mean over the examples with an output.
      shown: int32 `[K, B]`, the frame that each output is of, -1 where there is none.
      by_example: each metric, `[K, B]`.
    """
    valid = shown >= 0
    count = valid.sum(axis=1)
    losses = losses.astype(wide(losses.dtype))
    metrics = {"loss": average(jnp.sum(losses * count.astype(losses.dtype)), valid.sum())}
    return metrics | {name: masked_mean(one, valid) for name, one in by_example.items()}


def result(
    train_state: TrainState, metrics: dict, outputs: PyTree, shown: jax.Array, with_outputs: bool
) -> tuple:
    """What a train step on a stream returns."""
    if with_outputs:
        return train_state, metrics, Outputs(outputs, shown)
    return train_state, metrics
