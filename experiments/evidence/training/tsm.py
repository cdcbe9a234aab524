"""TSM, the temporal shift module (Lin et al., ICCV 2019), online: what sees motion without delays.

A synchronous network in which a part of the channels that a module hears is of the frame before.
Every module adds a frame to what an output depends on. The clip is there as a whole: all frames go
up together, and the gradient goes back through all of them, through the shifts too. In a pipeline a
module would have to keep those channels for one step, and their cotangents come from the future.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from experiments.evidence.training.learner import Learned, Learner
from experiments.jobs.classification.losses import cross_entropy
from sideways_jax import Network

PART = 8  # one channel of so many is of the frame before: the paper's choice for online networks


def logits(network: Network, params: tuple, state: tuple, frames: jax.Array) -> jax.Array:
    """`[K, B, classes]`, for frames `[K, B, ...]`; channels of all modules but the first shift."""
    x = frames
    for i, module in enumerate(network.modules):

        def output(x, i=i, module=module):
            return module.apply(params[i], state[i], x, train=True, rng=None)[0]

        x = jax.vmap(output)(shifted(x) if i else x)
    return x


def shifted(x: jax.Array, part: int = PART) -> jax.Array:
    """`[K, B, ..., C]` with the first C / part channels of the frame before; zeros at the first.

    >>> shifted(jnp.array([[[1, 2]], [[3, 4]], [[5, 6]]]), part=2)[:, 0]
    Array([[0, 2],
           [1, 4],
           [3, 6]], dtype=int32)
    """
    count = x.shape[-1] // part
    before = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    return jnp.concatenate([before[..., :count], x[..., count:]], axis=-1)


def loss(network: Network, params: tuple, state: tuple, frames: jax.Array, label: jax.Array):
    """The mean cross-entropy of all frames; labels `[B]`."""
    outputs = logits(network, params, state, frames)
    return cross_entropy(outputs, jnp.broadcast_to(label, outputs.shape[:2]))


def make_learner(network: Network, tx: optax.GradientTransformation) -> Learner:
    """Backprop through a clip. The modules have no state.

    Raises:
      ValueError: when it starts, for modules with a state, such as running statistics.
    """

    def init(key: jax.Array, frame: jax.ShapeDtypeStruct) -> Learned:
        params, state = network.init(key, frame)
        if jax.tree.leaves(state):
            raise ValueError("modules with a state cannot be shifted here: take others")
        return Learned(params, state, tx.init(params))

    def train_on(learned: Learned, frames: jax.Array, label: jax.Array) -> Learned:
        params, state, opt_state = learned
        gradient = jax.grad(loss, argnums=1)(network, params, state, frames, label)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return Learned(optax.apply_updates(params, updates), state, opt_state)

    def predict(learned: Learned, frames: jax.Array) -> jax.Array:
        return logits(network, learned.params, learned.state, frames).mean(0)

    return Learner(init, train_on, predict)
