"""Episodes of the library against the reference, which was written apart from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
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


def _sideways(network, params, state, frames, targets, target="stream", rng=None, train=True):
    return reference.sideways_episode(
        network, squared_error, params, state, frames, targets, target=target, train=train, rng=rng
    )


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


def _backprop(network, params, state, frames, targets, rng=None, train=True):
    return reference.backprop_episode(
        network, squared_error, params, state, frames, targets, train=train, rng=rng
    )


# Sideways is the reference ----------------------------------------------------------------------


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("extra_steps", "target", "make_clip"),
    [
        (0, "origin", networks.random_clip),
        (1, "stream", networks.byte_clip),
        (6, "origin", networks.random_clip),
    ],
)
@pytest.mark.parametrize("depth", DEPTHS)
def test_sideways_on_random_frames(depth, extra_steps, target, make_clip, execution):
    """Convolution, batch norm, keys, a counter, dictionaries and tuples, all at once."""
    start = networks.start(networks.mixed_network, depth)
    clip = make_clip(2 * depth - 1 + extra_steps, networks.PIXELS)
    rng = jax.random.key(RNG_SEED)
    actual = episode(*start, *clip, rng=rng, target=target, execution=execution)
    assert_same_episode(actual, _sideways(*start, *clip, target=target, rng=rng))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    "make_network",
    [
        networks.batch_norm_network,
        networks.dropout_network,
        networks.fragile_network,
        networks.remembering_network,
    ],
)
def test_sideways_one_kind_of_module_at_a_time(make_network, execution):
    start = networks.start(make_network, 4)
    clip = _clip(make_network, 9)
    rng = jax.random.key(RNG_SEED) if make_network is networks.dropout_network else None
    actual = episode(*start, *clip, rng=rng, target="stream", execution=execution)
    expected = _sideways(*start, *clip, rng=rng)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected.grads))
    assert_same_episode(actual, expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_not_training_uses_running_statistics_and_leaves_them(execution):
    start = networks.start(networks.mixed_network, 4)
    clip = _clip(networks.mixed_network, 8)
    actual = episode(*start, *clip, execution=execution, train=False)
    assert_same_episode(actual, _sideways(*start, *clip, train=False))
    assert_same(actual.state, start[2], atol=0)


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


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_broken_last_frame_reaches_only_the_module_that_saw_it(execution):
    """At the last step frame K is in module 1; the modules above must not know it."""
    start = networks.start(networks.batch_norm_network, 4)
    frames, targets = _clip(networks.batch_norm_network, 9)
    frames = frames.at[-1].set(jnp.nan)
    expected = _sideways(*start, frames, targets)
    for i in range(1, 4):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected.grads[i]))
    assert_same_episode(
        episode(*start, frames, targets, target="stream", execution=execution), expected
    )


# Backprop is the gradient -----------------------------------------------------------------------


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
