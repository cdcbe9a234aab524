"""What a run checks: its numbers of steps, and that all it has learned is finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.running.stopping import NonFiniteError
from sideways_jax.step import TrainState


def check_steps(options: ConfigDict) -> None:
    """Raises ValueError for numbers of steps in `config.train` that make no sense."""
    for name, least in (
        ("num_steps", 1),
        ("log_every", 1),
        ("checkpoint_every", 0),
        ("eval_every", 0),
    ):
        if options[name] < least:
            raise ValueError(f"train.{name}={options[name]} must be at least {least}")


def all_finite(train_state: TrainState) -> jax.Array:
    """Whether all parameters, running statistics and moments of the optimizer are, bool `[]`.

    The signals in flight are left out: those of a bubble may have any value. `signals_finite` looks
    at the others.
    """
    leaves = jax.tree.leaves((train_state.params, train_state.state, train_state.opt_state))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return _finite(leaves)
    # Outside of a program the modules may be on several devices, each of which looks at its own.
    by_place: dict[Any, list] = {}
    for leaf in leaves:
        by_place.setdefault(getattr(leaf, "sharding", None), []).append(leaf)
    found = [_finite_here(some) for some in by_place.values()]
    return jnp.all(jnp.stack(jax.device_put(found, train_state.step.sharding)))


def signals_finite(in_flight: Any) -> jax.Array:
    """Whether the signals in flight are finite, those of bubbles apart; bool `[]`.

    Args:
      in_flight: of a `TrainState` with a pytree for every module: activations and pseudo-gradients
        of Sideways, or the outputs that blocking backprop holds; or (), which is finite.
    """
    return _finite(
        [
            jnp.where((frames >= 0).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))
            for signal, frames in _signals(in_flight)
            for leaf in jax.tree.leaves(signal)
        ]
    )


def check_saved(step: int, train_state: TrainState) -> None:
    """Raises NonFiniteError for a train state whose signals are not finite, bubbles apart.

    A run that went on from there would fail again.

    Args:
      step: of the training loop.
      train_state: with a pytree for every module, about to be saved.
    """
    if not signals_finite(train_state.in_flight):
        raise NonFiniteError(f"a signal between modules is not finite after step {step}", step)


def _signals(in_flight: Any) -> Iterator[tuple[Any, jax.Array]]:
    """Every signal `[B, ...]`, and int32 `[B]`: the frames it comes from, -1 for a bubble."""
    if hasattr(in_flight, "fifos"):  # Of pipelined backprop: unused places hold anything.
        in_flight = in_flight.in_flight
    if hasattr(in_flight, "activations"):  # Of Sideways.
        yield from zip(in_flight.activations, in_flight.activation_frames, strict=True)
        yield from zip(in_flight.pseudo_gradients, in_flight.pseudo_gradient_frames, strict=True)
    elif in_flight:  # Of blocking backprop.
        yield in_flight.coming, in_flight.coming_frames
        yield in_flight.shown, in_flight.shown_frames


@jax.jit
def _finite_here(leaves: list) -> jax.Array:
    return _finite(leaves)


def _finite(tree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in floats], bool))
