"""Optimizers for gradients that come late: spike compensation, weight prediction, smaller rates.

On a stream with an update at every step, a module's weights change between the forward pass of a
frame and the update by its gradient: T = 2(D-1-i) times in module i of D, none at the top. Kosson
et al., "Pipelined Backpropagation at Scale" (MLSys 2021), make up for it in two ways, for gradient
descent with momentum, v_{t+1} = m v_t + g_t, and the learning rate r:

* spike compensation gives the newest gradient at once the weight that it would have gathered by
  now, had it not been late:

      w_{t+1} = w_t - r (a v_{t+1} + b g_t),    a = m^T,    b = (1 - m^T) / (1 - m)

  (all that a gradient moves in the end stays 1 / (1 - m) times itself);

* linear weight prediction runs the network at the weights that are expected T updates later:

      ŵ_t = w_t + T (w_t - w_{t-1}),    with momentum alone  ŵ_t = w_t - r T v_t

Delays differ by module, so both take one for each: parameters are a tuple of D pytrees.

    delays = delayed_optimizer.delays_of(network)
    tx = optax.chain(
        delayed_optimizer.spike_compensation(0.9, delays),
        optax.scale_by_learning_rate(0.1),
        delayed_optimizer.weight_prediction(delays),
    )

In the paper gradients are of the predicted weights at which the forward pass was: that is
`Scan(stash_weights=True)`. Without it the backward pass uses those that are predicted by then.

Pseudo-gradients are late in another way: the cotangent is of a frame T steps before the input. The
lower the module, the more wrong they are, and Adam, which knows no scale, makes steps of one length
of all of them. `scale_by_delay` makes those of lower modules shorter (docs/temporal.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sideways_jax.network.network import Network
from sideways_jax.tools.trees import PyTree


def delays_of(network: Network, update_every: int = 1) -> tuple[float, ...]:
    """Of every module, the updates from a frame's forward pass to the one with its gradient.

    Args:
      network: D modules.
      update_every: as in `step.make_train_step`; with more than one step an update, a mean.

    >>> from sideways_jax import Module
    >>> nothing = Module(lambda key, x: ((), ()), lambda params, state, x, *, train, rng: (x, ()))
    >>> delays_of(Network([nothing] * 3))
    (4.0, 2.0, 0.0)
    """
    return tuple(network.wiring.first_trained(i) / update_every for i in range(network.depth))


def spike_compensation(decay: float, delays: Sequence[float]) -> optax.GradientTransformation:
    """Momentum for late gradients, in the place of `optax.trace(decay)`: `a v + b g`.

    Args:
      decay: m, from 0 to below 1.
      delays: T of every module; where it is 0 this is momentum.

    Raises:
      ValueError: for a decay or a delay that is out of range, and unless there is one delay for
        each module.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must be at least 0 and below 1")
    delays = _checked(delays)

    def init(params: PyTree) -> optax.TraceState:
        _check_modules(delays, params)
        return optax.TraceState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: optax.TraceState, params: PyTree = None
    ) -> tuple[PyTree, optax.TraceState]:
        del params
        velocity = jax.tree.map(lambda g, v: decay * v + g, updates, state.trace)

        def compensated(delay: float, v: PyTree, g: PyTree) -> PyTree:
            a = decay**delay
            b = (1 - a) / (1 - decay)
            return jax.tree.map(lambda v, g: a * v + b * g, v, g)

        return tuple(map(compensated, delays, velocity, updates)), optax.TraceState(velocity)

    return optax.GradientTransformation(init, update)


def scale_by_delay(delays: Sequence[float], power: float = 2.0) -> optax.GradientTransformation:
    """The changes of a module divided by (1 + T)^power; the last transformation of a chain.

    With Adam before it, it is a learning rate for every module.

    Args:
      delays: T of every module.
      power: 0 changes nothing; the higher, the less the lower modules move.

    Raises:
      ValueError: for a negative power, and as `spike_compensation` does.

    >>> tx = scale_by_delay((2.0, 0.0))
    >>> params = (jnp.ones(1), jnp.ones(1))
    >>> [round(float(x[0]), 3) for x in tx.update((jnp.ones(1), jnp.ones(1)), tx.init(params))[0]]
    [0.111, 1.0]
    """
    if power < 0:
        raise ValueError(f"power={power} must be 0 or more: late gradients are to count less")
    delays = _checked(delays)

    def init(params: PyTree) -> optax.EmptyState:
        _check_modules(delays, params)
        return optax.EmptyState()

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree = None
    ) -> tuple[PyTree, optax.EmptyState]:
        del params
        scaled = tuple(
            jax.tree.map(lambda u, delay=delay: u / (1 + delay) ** power, of_module)
            for delay, of_module in zip(delays, updates, strict=True)
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


class PredictionState(NamedTuple):
    """By how much the parameters are ahead of the weights: `T (w_t - w_{t-1})`."""

    ahead: PyTree


def weight_prediction(delays: Sequence[float]) -> optax.GradientTransformation:
    """Parameters that are the predicted weights ŵ; the last transformation of a chain.

    What comes in are the changes of the weights w, with sign and learning rate; what goes out are
    those of the parameters, which are ŵ. `without_prediction` gives the weights themselves.

    Args:
      delays: T of every module.

    Raises:
      ValueError: as `spike_compensation` does.
    """
    delays = _checked(delays)

    def init(params: PyTree) -> PredictionState:
        _check_modules(delays, params)
        return PredictionState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: PredictionState, params: PyTree = None
    ) -> tuple[PyTree, PredictionState]:
        del params
        ahead = tuple(
            jax.tree.map(lambda u, delay=delay: delay * u, of_module)
            for delay, of_module in zip(delays, updates, strict=True)
        )
        moved = jax.tree.map(lambda u, new, old: u + new - old, updates, ahead, state.ahead)
        return moved, PredictionState(ahead)

    return optax.GradientTransformation(init, update)


def without_prediction(params: tuple, opt_state: PyTree) -> tuple:
    """The weights w, for parameters that `weight_prediction` moved; to test, and to keep.

    Args:
      params: tuple of D pytrees, as in a train state.
      opt_state: of the whole transformation.

    Raises:
      ValueError: if there is no `weight_prediction` in it.
    """
    ahead = optax.tree_utils.tree_get(opt_state, "ahead")
    if ahead is None:
        raise ValueError(
            "this optimizer's state has no prediction: its parameters are the weights themselves"
        )
    return jax.tree.map(jnp.subtract, params, ahead)


def _checked(delays: Sequence[float]) -> tuple[float, ...]:
    delays = tuple(map(float, delays))
    if any(delay < 0 for delay in delays):
        raise ValueError(f"delays={delays} must not be negative: give updates, one for each module")
    return delays


def _check_modules(delays: tuple[float, ...], params: PyTree) -> None:
    if not isinstance(params, tuple) or len(params) != len(delays):
        given = f"{len(params)} modules" if isinstance(params, tuple) else type(params).__name__
        raise ValueError(
            f"{len(delays)} delays for {given}: give one for every module, as delays_of(network)"
        )
