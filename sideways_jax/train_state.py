"""What training carries along."""

from __future__ import annotations

from typing import NamedTuple

import jax

from sideways_jax.trees import PyTree


class TrainState(NamedTuple):
    """All that training carries from one step to the next: one pytree, to be saved as it is."""

    step: jax.Array  # int32, weight updates so far
    params: tuple  # D pytrees
    state: tuple  # D pytrees
    opt_state: PyTree  # of the optax transformation over `params`
    # step.InFlight with `update_every`, ShardedInFlight on a mesh; () if every episode starts empty
    in_flight: tuple
    rng: jax.Array  # never changes; keys are folded in from `step` or the number of the frame
