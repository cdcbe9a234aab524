"""The temporal shift module of the direction task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.evidence.training import tsm
from experiments.evidence.training.networks import convolutional

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def start():
    network = convolutional((8, 8, 8), (1, 2, 1), 3)
    frames = jnp.asarray(np.random.default_rng(0).random((6, 2, 6, 6, 3), np.float32))
    return network, *network.init(jax.random.key(0), frames[0]), frames


def test_as_a_network_that_keeps_channels_of_the_frame_before(start):
    """Frame by frame, as it would run on a stream."""
    network, params, state, frames = start
    kept = {}
    for frame, given in zip(frames, tsm.logits(*start), strict=True):
        x = frame
        for i, module in enumerate(network.modules):
            if i:
                now = x
                x = now.at[..., :1].set(kept[i][..., :1] if i in kept else 0.0)  # 8 / 8 channels
                kept[i] = now
            x, _ = module.apply(params[i], state[i], x, train=True, rng=None)
        np.testing.assert_allclose(given, x, rtol=1e-4, atol=1e-6)


def test_gradients_go_back_through_every_shift(start):
    """An output depends on its own frame, and on as many before as there are shifts."""
    network, params, state, frames = start

    def last(frames):
        return tsm.logits(network, params, state, frames)[-1].sum()

    reaches = np.abs(jax.jit(jax.grad(last))(frames)).max((1, 2, 3, 4)) > 0
    assert reaches.tolist() == [False, False, True, True, True, True]


def test_it_learns(start):
    with jax.numpy_dtype_promotion("standard"):  # Adam counts in integers.
        _learn(start)


def _learn(start):
    network, *_, frames = start
    learner = tsm.make_learner(network, optax.adam(1e-2))
    learned = learner.init(jax.random.key(1), frames[0])
    label = jnp.array([0, 2])

    def loss(learned):
        return tsm.loss(network, learned.params, learned.state, frames, label)

    before, train_on = loss(learned), jax.jit(learner.train_on)
    for _ in range(20):
        learned = train_on(learned, frames, label)
    assert loss(learned) < 0.5 * before
    assert learner.predict(learned, frames).argmax(-1).tolist() == [0, 2]
