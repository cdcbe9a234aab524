"""Learning and inference on a stream, with Sideways and with blocking backprop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from sideways_jax import Network, step, stream
from sideways_jax.one_device import blocking
from sideways_jax.rule.task import RULES
from sideways_jax.step import Training
from sideways_jax.stream import Outputs
from sideways_jax.tools.names import check_name


def make_learning(
    rule: str,
    network: Network,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    update_every: int = 1,
    target: str = "stream",
    **execution: Any,
) -> Training:
    """`step.make_train_step` for a stream; the train step also returns the outputs.

    Args:
      rule: "sideways", "pipelined_backprop", or "backprop", which blocks.
      network: D modules.
      loss_fn: `loss_fn(output, target) -> scalar`, the mean over the batch.
      tx: the optimizer.
      update_every: frames from one update of Sideways to the next; backprop takes 2D-1.
      target: "stream" or "origin": which frame's target Sideways compares an output with.
      **execution: "execution", "mesh" and "groups" of Sideways.

    Raises:
      ValueError: for an unknown rule.
    """
    options = {"update_every": update_every, "target": target, **execution}
    if rule == "backprop":
        options = {"update_every": 1}
    return step.make_train_step(network, loss_fn, tx, rule=rule, with_outputs=True, **options)


def frames_per_update(rule: str, depth: int, update_every: int) -> int:
    """How many frames arrive from one weight update to the next."""
    return blocking.period(depth, train=True) if rule == "backprop" else update_every


def make_showing(rule: str, network: Network) -> tuple[Callable, Callable]:
    """Inference with constant weights: pipelined for Sideways, else blocking.

    Returns:
      `init(params, state, frame) -> carry`, and
      `show(params, state, carry, frames, reset) -> (carry, Outputs)` for frames `[K, B, ...]`;
      frames are numbered from 0, since `init`.
    """
    check_name("rule", rule, RULES)
    if rule != "backprop":

        def init_pipeline(params, state, frame):
            return stream.init_pipeline(network, params, state, frame)

        def show_pipelined(params, state, pipeline, frames, reset):
            return stream.pipelined_outputs(network, params, state, pipeline, frames, reset)

        return init_pipeline, show_pipelined

    def init_held(params, state, frame):
        return blocking.init_held(network, params, state, frame), jnp.zeros((), jnp.int32)

    def show_held(params, state, carry, frames, reset) -> tuple[Any, Outputs]:
        held, first = carry
        held, outputs = blocking.show(network, params, state, held, frames, first, reset)
        return (held, first + reset.shape[0]), outputs

    return init_held, show_held
