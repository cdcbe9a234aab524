"""What training carries along, and the two functions that every execution trains with."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax.tools.trees import PyTree


class TrainState(NamedTuple):
    """All that training carries from one step to the next: one pytree, to be saved as it is."""

    step: jax.Array  # int32, weight updates so far
    params: PyTree  # D pytrees; on a mesh `devices.Placed`: each on the device of its module
    state: PyTree  # likewise
    opt_state: PyTree  # of the optax transformation over `params`
    # What is between modules when weights change within a stream (`update_every`): step.InFlight,
    # ShardedInFlight on a mesh, blocking.Held for backprop; () if every episode starts empty.
    in_flight: Any
    rng: jax.Array  # never changes; keys are folded in from `step` or the number of the frame
    # Of each clip or stream, how many arrived so far; int32.
    frames: jax.Array | np.ndarray = np.zeros((), np.int32)


def new_train_state(
    params: PyTree, state: PyTree, opt_state: PyTree, in_flight: Any, rng: Any
) -> TrainState:
    """A state before the first frame."""
    # Two zeros: one array in two places could not be donated.
    none = [jnp.zeros((), jnp.int32) for _ in range(2)]
    return TrainState(none[0], params, state, opt_state, in_flight, rng, none[1])


class Init(Protocol):
    """Makes the state that training starts from."""

    def __call__(self, key: jax.Array, frame: PyTree, target: PyTree = None) -> TrainState:
        """From a batch of frames `[B, ...]`, and targets where they are carried along, or shapes.

        Raises:
          ValueError: if the network, the batch or the optimizer cannot be trained like that.
        """
        ...


class Step(Protocol):
    """Trains on the next frames; pure, to be jitted with `donate_argnums=0`."""

    # *args and **options stand for the `reset` of streams, which clips do not have; the length of
    # what comes back depends on `with_outputs`.
    def __call__(
        self, train_state: TrainState, frames: PyTree, targets: PyTree, *args: Any, **options: Any
    ) -> tuple:
        """Takes `[K, B, ...]`; a stream takes `reset`, bool `[K, B]` or None, as well.

        Returns:
          `(train_state, metrics)`, and `Outputs` as a third if they were asked for.

        Raises:
          ValueError: for frames and targets that do not fit one another or the state.
        """
        ...


class Training(NamedTuple):
    """`(init, train_step)`, as an optax transformation is `(init, update)`."""

    init: Init
    train_step: Step
