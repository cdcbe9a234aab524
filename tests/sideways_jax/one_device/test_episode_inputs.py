"""Episodes of all kinds of input, and under what JAX can be told, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import step
from tests.sideways_jax import networks, reference
from tests.sideways_jax.comparison import assert_same, assert_same_episode
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import episode, jitted_episode

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

EXECUTIONS = ("scan", "time_parallel")
TARGETS = ("stream", "origin")
RNG_SEED = 11


def _clip(make_network, num_frames):
    return networks.random_clip(num_frames, networks.frame_shape(make_network))


def _sideways(network, *arguments, rng=None):
    return reference.sideways_episode(
        network, squared_error, *arguments, target="stream", train=True, rng=rng
    )


def _backprop(network, *arguments):
    return reference.backprop_episode(network, squared_error, *arguments, train=True, rng=None)


# Kinds of input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_integer_labels(execution):
    start = networks.start(networks.dense_network, 4)
    frames, _ = _clip(networks.dense_network, 9)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 3, (9, networks.BATCH)), jnp.int32)

    def cross_entropy(logits, label):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1))

    actual = episode(*start, frames, labels, loss_fn=cross_entropy, execution=execution)
    expected = reference.sideways_episode(
        start[0], cross_entropy, *start[1:], frames, labels, target="stream", train=True, rng=None
    )
    assert_same_episode(actual, expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_frames_targets_and_outputs_may_be_pytrees(execution):
    """The last module may give a dictionary as well, and the loss take it apart."""
    network = networks.Network([networks.left_and_right(), networks.fork(4)])
    (left, y), (right, _) = (networks.random_clip(5, seed=seed) for seed in (0, 1))
    frames, targets = {"left": left, "right": right}, (y, 2 * y)
    params, state = network.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], frames))

    def loss_fn(output, target):
        x, h = output["skip"]
        return squared_error(x[:, :3], target[0]) + squared_error(
            (output["main"] * h)[:, :3], target[1]
        )

    for target in TARGETS:
        expected = reference.sideways_episode(
            network, loss_fn, params, state, frames, targets, target=target, train=True, rng=None
        )
        actual = episode(
            network, params, state, frames, targets,
            loss_fn=loss_fn, target=target, execution=execution,
        )  # fmt: skip
        assert_same_episode(actual, expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_old_style_keys(execution):
    start = networks.start(networks.mixed_network, 1)
    clip = _clip(networks.mixed_network, 2)
    rng = jax.random.PRNGKey(RNG_SEED)
    assert_same_episode(
        episode(*start, *clip, rng=rng, execution=execution), _sideways(*start, *clip, rng=rng)
    )


# What JAX should not change ---------------------------------------------------------------------


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_same_without_jit(execution):
    start = networks.start(networks.dense_network, 2)
    clip = _clip(networks.dense_network, 4)
    plain = step.episode_gradients(start[0], squared_error, *start[1:], *clip, execution=execution)
    assert_same(plain, episode(*start, *clip, execution=execution), atol=1e-12)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradients_have_the_structure_of_the_parameters(execution):
    network, params, state = networks.start(networks.mixed_network, 6)
    assert {} in params  # a module without parameters is among them
    clip = _clip(networks.mixed_network, 11)
    done = jax.eval_shape(
        jitted_episode(network, squared_error, execution=execution),
        params,
        state,
        *clip,
        jax.random.key(0),
    )
    for actual, expected in ((done.grads, params), (done.state, state)):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), expected)
        assert actual == shapes
        assert isinstance(actual, tuple)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_single_precision_stays_single_and_is_close(execution):
    start = networks.start(networks.keyless_mixed_network, 4)
    clip = _clip(networks.keyless_mixed_network, 9)
    expected = _sideways(*start, *clip)

    def to_single(tree):
        def convert(leaf):
            return leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf

        return jax.tree.map(convert, tree)

    single = to_single((start[1], start[2], *clip))
    with jax.enable_x64(False):
        actual = episode(start[0], *single, execution=execution)
    for part in ("grads", "loss", "outputs", "state"):
        reference_part = to_single(jax.tree.map(np.asarray, getattr(expected, part)))
        assert_same(getattr(actual, part), reference_part, atol=2e-5, what=part)


@pytest.mark.parametrize("rule", ["sideways", "backprop"])
def test_a_state_that_changes_the_output(rule):
    """Modules may remember: here every frame is scaled by how many there were before it."""
    network = networks.Network(
        [networks.dense(4), networks.fading(), networks.linear(networks.NUM_OUTPUTS)]
    )
    clip = networks.random_clip(8)
    start = (network, *network.init(jax.random.key(0), clip[0][0]))
    expected = {"sideways": _sideways, "backprop": _backprop}[rule](*start, *clip)
    for execution in EXECUTIONS:
        assert_same_episode(episode(*start, *clip, rule=rule, execution=execution), expected)


def test_an_optimised_program_computes_the_same():
    """Once with all of XLA's optimisations, which the tests above do without."""
    jax.config.update("jax_disable_most_optimizations", False)
    start = networks.start(networks.batch_norm_network, 2)
    clip = _clip(networks.batch_norm_network, 5)
    expected = _sideways(*start, *clip)
    for execution in EXECUTIONS:
        fresh = jitted_episode.__wrapped__(start[0], squared_error, execution=execution)
        assert_same_episode(fresh(*start[1:], *clip, None), expected)
