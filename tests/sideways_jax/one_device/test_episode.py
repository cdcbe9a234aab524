"""Episodes of the library against the reference, which was written apart from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sideways_jax import networks, reference
from tests.sideways_jax.comparison import assert_same, assert_same_episode
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
