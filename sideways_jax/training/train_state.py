"""The state of training, and the two functions that train: `init` and `train_step`."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax.tools.trees import PyTree


class TrainState(NamedTuple):
    """All that training carries from one step to the next, a pytree; save it as it is."""

    step: jax.Array  # int32, weight updates so far
    params: PyTree  # D pytrees; on a mesh `devices.Placed`: each on the device of its module
    state: PyTree  # likewise
    opt_state: PyTree  # of the optax transformation over `params`
    # Signals between modules when weights change within a stream (`update_every`): step.InFlight,
    # ShardedInFlight on a mesh, blocking.Held for backprop; () if every episode starts empty.
    in_flight: Any
    rng: jax.Array  # constant; keys fold in `step` or the number of the frame
    # How many frames of each clip or stream arrived so far; int32.
    frames: jax.Array | np.ndarray = np.zeros((), np.int32)


def new_train_state(
    params: PyTree, state: PyTree, opt_state: PyTree, in_flight: Any, rng: Any
) -> TrainState:
    """A state before the first frame."""
    # Two arrays: one array in two places cannot be donated.
    none = [jnp.zeros((), jnp.int32) for _ in range(2)]
    return TrainState(none[0], params, state, opt_state, in_flight, rng, none[1])


class Init(Protocol):
    """Makes the first train state."""

    def __call__(self, key: jax.Array, frame: PyTree, target: PyTree = None) -> TrainState:
        """From frames `[B, ...]`, and targets if the pipeline carries them, or from their shapes.

        Raises:
          ValueError: if the network, the batch or the optimizer cannot be trained like that.
        """
        ...


class Step(Protocol):
    """Trains on the next frames. A pure function; jit it with `donate_argnums=0`."""

    # *args and **options stand for `reset`, which streams have and clips do not; the length of the
    # result depends on `with_outputs`.
    def __call__(
        self, train_state: TrainState, frames: PyTree, targets: PyTree, *args: Any, **options: Any
    ) -> tuple:
        """Takes `[K, B, ...]`; a stream takes `reset`, bool `[K, B]` or None, as well.

        Returns:
          `(train_state, metrics)`, or with `with_outputs`, `(train_state, metrics, Outputs)`.

        Raises:
          ValueError: if frames and targets do not fit one another or the state.
        """
        ...


class Training(NamedTuple):
    """`(init, train_step)`, as optax has `(init, update)`."""

    init: Init
    train_step: Step
