"""Backprop is the gradient of the mean loss; and where Sideways is backprop."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.sideways_jax import networks, reference
from tests.sideways_jax.comparison import assert_same, assert_same_episode, largest_difference
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import episode

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

DEPTHS = (1, 2, 4, 6)
EXECUTIONS = ("scan", "time_parallel")
RNG_SEED = 11


def _clip(make_network, num_frames, make_clip=networks.random_clip):
    return make_clip(num_frames, networks.frame_shape(make_network))


def _gradient_of_mean_loss(network, params, state, frames, targets):
    """What JAX says about the network as a whole, without dropout: `(loss, gradients)`."""

    def loss_of_frame(params, frame, target):
        h = frame
        for i, module in enumerate(network.modules):
            h, _ = module.apply(params[i], state[i], h, train=True, rng=None)
        return squared_error(h, target)

    def mean_loss(params):
        return jnp.mean(jax.vmap(functools.partial(loss_of_frame, params))(frames, targets))

    return jax.jit(jax.value_and_grad(mean_loss))(params)


def _backprop(network, params, state, frames, targets, rng=None):
    return reference.backprop_episode(
        network, squared_error, params, state, frames, targets, train=True, rng=rng
    )


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("make_network", "depth"),
    [
        (networks.batch_norm_network, 1),
        (networks.batch_norm_network, 4),
        (networks.dense_network, 6),
    ],
)
def test_backprop_is_the_gradient_of_the_mean_loss(make_network, depth, execution):
    start = networks.start(make_network, depth)
    clip = _clip(make_network, 3)
    loss, grads = _gradient_of_mean_loss(*start, *clip)
    actual = episode(*start, *clip, rule="backprop", execution=execution)
    assert_same(actual.loss, loss)
    assert_same(actual.grads, grads)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("depth", "target"), [(1, "stream"), (4, "origin")])
def test_backprop_on_everything_at_once(depth, target, execution):
    """Also for episodes that are too short for Sideways, and for frames of bytes."""
    start = networks.start(networks.mixed_network, depth)
    clip = networks.byte_clip(3)
    rng = jax.random.key(RNG_SEED)
    actual = episode(*start, *clip, rng=rng, target=target, rule="backprop", execution=execution)
    assert_same_episode(actual, _backprop(*start, *clip, rng=rng))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_constant_frames_give_backprop(depth, execution):
    start = networks.start(networks.batch_norm_network, depth)
    clip = _clip(networks.batch_norm_network, 2 * depth + 1, networks.constant_clip)
    actual = episode(*start, *clip, target="stream", execution=execution)
    assert_same(actual.grads, _backprop(*start, *clip).grads)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_one_module_gives_backprop(execution):
    start = networks.start(networks.mixed_network, 1)
    clip = _clip(networks.mixed_network, 7)
    rng = jax.random.key(RNG_SEED)
    actual = episode(*start, *clip, rng=rng, target="origin", execution=execution)
    assert_same_episode(actual, _backprop(*start, *clip, rng=rng))


@pytest.mark.parametrize(("target", "execution"), [("stream", "time_parallel"), ("origin", "scan")])
def test_the_last_module_is_exact_on_random_frames(target, execution):
    depth, num_frames = 4, 9
    start = networks.start(networks.dense_network, depth)
    frames, targets = _clip(networks.dense_network, num_frames)
    seen = num_frames - depth + 1
    labels = targets[depth - 1 :] if target == "stream" else targets[:seen]
    loss, exact = _gradient_of_mean_loss(*start, frames[:seen], labels)
    actual = episode(*start, frames, targets, target=target, execution=execution)
    assert_same(actual.loss, loss)
    assert_same(actual.grads[-1], exact[-1])
    # And only that one: the others combine different frames.
    for i in range(depth - 1):
        assert largest_difference(actual.grads[i], exact[i]) > 1e-3
