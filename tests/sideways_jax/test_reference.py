"""The reference itself, against the formulas and the table of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sideways_jax import networks, reference
from tests.sideways_jax.comparison import EXACT, assert_same, largest_difference
from tests.sideways_jax.networks import squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


def _sideways(network, params, state, frames, targets, target="stream", rng=None, **options):
    return reference.sideways_episode(
        network, squared_error, params, state, frames, targets,
        target=target, train=True, rng=rng, **options,
    )  # fmt: skip


def _backprop(network, params, state, frames, targets, rng=None):
    return reference.backprop_episode(
        network, squared_error, params, state, frames, targets, train=True, rng=rng
    )


def test_five_modules_and_nine_steps_give_the_table_of_the_paper():
    # Figure 2: activation frame / origin of the pseudo-gradient, 1-based, 0 for none.
    table = {
        5: [(5, 0), (4, 0), (3, 0), (2, 0), (1, 1)],
        6: [(6, 0), (5, 0), (4, 0), (3, 1), (2, 2)],
        7: [(7, 0), (6, 0), (5, 1), (4, 2), (3, 3)],
        8: [(8, 0), (7, 1), (6, 2), (5, 3), (4, 4)],
        9: [(9, 1), (8, 2), (7, 3), (6, 4), (5, 5)],
    }
    network, params, state = networks.start(networks.dense_network, 5)
    episode = _sideways(network, params, state, *networks.random_clip(9))
    for t, row in table.items():
        found = np.stack([episode.trace.frames[t - 1], episode.trace.origins[t - 1]], axis=1) + 1
        assert found.tolist() == [list(pair) for pair in row], f"step {t}"
    np.testing.assert_array_equal(episode.num_grads, [1, 2, 3, 4, 5])
    # Before step 5 the pipeline fills, no module trains.
    assert (episode.trace.origins[:4] == -1).all()
    assert episode.trace.frames[:4].tolist() == [
        [0, -1, -1, -1, -1],
        [1, 0, -1, -1, -1],
        [2, 1, 0, -1, -1],
        [3, 2, 1, 0, -1],
    ]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_messages_carry_the_product_of_jacobians_of_section_3_4(depth):
    """Unrolls the definition above Equation 3 instead of passing messages."""
    num_frames = 2 * depth + 1
    network, params, state = networks.start(networks.batch_norm_network, depth)
    frames, targets = networks.random_clip(num_frames)
    x = {t: np.asarray(frames)[t - 1] for t in range(1, num_frames + 1)}
    y = {t: np.asarray(targets)[t - 1] for t in range(1, num_frames + 1)}

    @functools.partial(jax.jit, static_argnums=0)
    def module(i, theta, h):
        return network.modules[i - 1].apply(theta, state[i - 1], h, train=True, rng=None)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def times_jacobians(i, row, h):
        """`row` times the Jacobians of H_i with respect to its parameters and its input."""
        return jax.vjp(functools.partial(module, i), params[i - 1], h)[1](row)

    h = {(0, t): x[t] for t in x}
    for t in x:
        for i in range(1, depth + 1):
            h[i, t] = module(i, params[i - 1], h[i - 1, t])

    gradient_of_loss = jax.jit(jax.grad(squared_error))
    for target in ("stream", "origin"):
        episode = _sideways(network, params, state, frames, targets, target)
        for i in range(1, depth + 1):
            terms = []
            for t in range(2 * depth - i, num_frames + 1):
                t_i = t + i - depth
                label = y[t_i] if target == "stream" else y[t_i - depth + 1]
                row = gradient_of_loss(h[depth, t_i - depth + 1], label)
                for j in range(depth, i, -1):  # J_{h_{j-1}} H_j at frame t_i - D + 1 + 2 (D - j)
                    _, row = times_jacobians(j, row, h[j - 1, t_i - depth + 1 + 2 * (depth - j)])
                row, _ = times_jacobians(i, row, h[i - 1, t - i + 1])
                terms.append(row)
            mean = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *terms)
            assert_same(episode.grads[i - 1], mean, what=f"module {i}")


@pytest.mark.parametrize("depth", [1, 4])
def test_backprop_is_the_gradient_of_the_mean_loss(depth):
    network, params, state = networks.start(networks.mixed_network, depth)
    frames, targets = networks.random_clip(4, networks.PIXELS)
    rng = jax.random.key(7)

    def mean_loss(params):
        losses, s = [], state
        for f in range(4):
            h, new_s = frames[f], []
            for i, module in enumerate(network.modules):
                key = jax.random.fold_in(jax.random.fold_in(rng, i), f)
                h, s_i = module.apply(params[i], s[i], h, train=True, rng=key)
                new_s.append(s_i)
            s = tuple(new_s)
            losses.append(squared_error(h, targets[f]))
        return sum(losses) / 4, s

    (loss, new_state), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    episode = _backprop(network, params, state, frames, targets, rng)
    assert_same(episode.grads, grads)
    assert_same(episode.loss, loss)
    assert_same(episode.state, new_state)


@pytest.mark.parametrize("depth", [2, 4])
def test_constant_frames_give_backprop(depth):
    network, params, state = networks.start(networks.keyless_mixed_network, depth)
    clip = networks.constant_clip(2 * depth + 1, networks.PIXELS)
    sideways = _sideways(network, params, state, *clip)
    assert_same(sideways.grads, _backprop(network, params, state, *clip).grads)


def test_one_module_gives_backprop():
    network, params, state = networks.start(networks.mixed_network, 1)
    clip = networks.random_clip(4, networks.PIXELS)
    rng = jax.random.key(3)
    sideways = _sideways(network, params, state, *clip, rng=rng)
    backprop = _backprop(network, params, state, *clip, rng=rng)
    assert_same(sideways.grads, backprop.grads)
    assert_same(sideways.state, backprop.state)
    assert_same(sideways.loss, backprop.loss)


def test_the_last_module_is_exact_and_the_others_are_not():
    network, params, state = networks.start(networks.dense_network, 4)
    frames, targets = networks.random_clip(9)
    sideways = _sideways(network, params, state, frames, targets, "origin")
    # The top module saw frames 1..6 of 9.
    exact = _backprop(network, params, state, frames[:6], targets[:6])
    assert_same(sideways.grads[3], exact.grads[3])
    for i in range(3):
        assert largest_difference(sideways.grads[i], exact.grads[i]) > 1e-3


def test_the_two_alignments_differ_when_the_target_moves():
    start = networks.start(networks.dense_network, 4)
    clip = networks.random_clip(9)
    stream, origin = (_sideways(*start, *clip, target) for target in ("stream", "origin"))
    assert abs(stream.loss - origin.loss) > 1e-3
    for i in range(4):
        assert largest_difference(stream.grads[i], origin.grads[i]) > 1e-3


def test_the_error_of_the_pseudo_gradient_vanishes_with_the_speed_of_the_frames():
    network, params, state = networks.start(networks.dense_network, 4)

    def error(speed):
        clip = networks.smooth_clip(9, speed)
        sideways = _sideways(network, params, state, *clip)
        return largest_difference(sideways.grads, _backprop(network, params, state, *clip).grads)

    assert error(1e-4) == pytest.approx(error(1e-3) / 10, rel=0.05)
    assert error(0.0) < EXACT


def test_an_episode_that_is_too_short_leaves_the_lower_modules_untrained():
    network, params, state = networks.start(networks.dense_network, 4)
    episode = _sideways(network, params, state, *networks.random_clip(5))
    np.testing.assert_array_equal(episode.num_grads, [0, 0, 1, 2])
    assert_same(episode.grads[0], jax.tree.map(jnp.zeros_like, params[0]))


def test_statistics_follow_the_frames_a_module_saw():
    """Module i sees K - i + 1 frames, in order."""
    network, params, state = networks.start(networks.batch_norm_network, 2)
    frames, targets = networks.random_clip(4)
    episode = _sideways(network, params, state, frames, targets)
    s = state
    for f in range(4):
        h, s0 = network.modules[0].apply(params[0], s[0], frames[f], train=True, rng=None)
        s1 = s[1]
        if f < 3:
            s1 = network.modules[1].apply(params[1], s[1], h, train=True, rng=None)[1]
        s = (s0, s1)
    assert_same(episode.state, s)


def test_online_weights_change_at_every_step():
    network, params, state = networks.start(networks.dense_network, 1)
    frames, targets = networks.random_clip(3)
    episode = _sideways(network, params, state, frames, targets, learning_rate=0.1)
    by_hand = params
    for f in range(3):
        one = _backprop(network, by_hand, state, frames[f : f + 1], targets[f : f + 1])
        by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, by_hand, one.grads)
    assert_same(episode.params, by_hand)
