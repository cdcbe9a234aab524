"""Optimizers for late gradients, against the paper's formulas as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import Network, make_mesh, step
from sideways_jax.training import delayed_optimizer
from tests.sideways_jax import networks
from tests.sideways_jax.comparison import assert_same
from tests.sideways_jax.networks import squared_error

RATE, DECAY, DELAYS = 0.1, 0.8, (4.0, 2.0, 0.5, 0.0)


def _gradients(count):
    draw = np.random.default_rng(0)
    return [tuple({"w": draw.normal(size=3)} for _ in DELAYS) for _ in range(count)]


def _run(tx, gradients):
    """The parameters after every update, from ones."""
    params = tuple({"w": np.ones(3)} for _ in DELAYS)
    opt_state, found = tx.init(params), []
    for grads in gradients:
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, opt_state


@pytest.mark.usefixtures("x64")
def test_spike_compensation_is_the_formula():
    gradients = _gradients(7)
    tx = optax.chain(
        delayed_optimizer.spike_compensation(DECAY, DELAYS), optax.scale_by_learning_rate(RATE)
    )
    found, _ = _run(tx, gradients)
    for i, delay in enumerate(DELAYS):
        w, v = np.ones(3), np.zeros(3)
        for grads, params in zip(gradients, found, strict=True):
            g = grads[i]["w"]
            v = DECAY * v + g
            w = w - RATE * (DECAY**delay * v + (1 - DECAY**delay) / (1 - DECAY) * g)
            np.testing.assert_allclose(params[i]["w"], w, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_gradient_moves_as_much_in_the_end_as_with_momentum():
    tx = delayed_optimizer.spike_compensation(DECAY, DELAYS)
    nothing = tuple({"w": np.zeros(3)} for _ in DELAYS)
    [one] = _gradients(1)
    found, _ = _run(tx, [one] + [nothing] * 200)
    for moved, g in zip(found[-1], one, strict=True):
        np.testing.assert_allclose(moved["w"] - 1, g["w"] / (1 - DECAY), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_weight_prediction_is_the_formula():
    """Both of its forms, which agree for momentum, and the weights themselves."""
    gradients = _gradients(7)
    tx = optax.chain(
        optax.trace(DECAY),
        optax.scale_by_learning_rate(RATE),
        delayed_optimizer.weight_prediction(DELAYS),
    )
    found, opt_state = _run(tx, gradients)
    weights = delayed_optimizer.without_prediction(found[-1], opt_state)
    for i, delay in enumerate(DELAYS):
        w, v = np.ones(3), np.zeros(3)
        for grads, params in zip(gradients, found, strict=True):
            v = DECAY * v + grads[i]["w"]
            before, w = w, w - RATE * v
            np.testing.assert_allclose(params[i]["w"], w - RATE * delay * v, rtol=1e-12)
            np.testing.assert_allclose(params[i]["w"], w + delay * (w - before), rtol=1e-12)
        np.testing.assert_allclose(weights[i]["w"], w, rtol=1e-12)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_on_a_stream_gradients_are_those_of_the_predicted_weights():
    """A network of two scalars, by hand: y = b tanh(a x); `a` is used two updates before.

    Frame t goes up with a at step t and b at step t + 1, and comes back to a at step t + 2.
    """
    scalar = networks.Module(
        lambda key, x: (jnp.ones(()), ()),
        lambda params, state, x, *, train, rng: (jnp.tanh(params * x), state),
    )
    network = Network([scalar, scalar])
    delays = delayed_optimizer.delays_of(network)
    assert delays == (2.0, 0.0)
    tx = optax.chain(
        delayed_optimizer.spike_compensation(DECAY, delays),
        optax.scale_by_learning_rate(RATE),
        delayed_optimizer.weight_prediction(delays),
    )
    init, train_step = step.make_train_step(
        network, squared_error, tx, rule="pipelined_backprop", update_every=1, target="origin",
        execution=step.Scan(stash_weights=True),
    )  # fmt: skip
    x = np.random.default_rng(1).normal(size=(9, 1, 1))
    train_state, _ = jax.jit(train_step)(init(jax.random.key(0), x[0], x[0]), x, 0 * x)

    def loss(a, b, x):
        return jnp.tanh(b * jnp.tanh(a * x)) ** 2

    w, v = np.ones(2), np.zeros(2)  # of a and b
    ahead = np.ones(2)
    used = []  # the predicted a of every frame, and b one step later
    for t in range(9):
        used.append(ahead.copy())
        g = [0.0, 0.0]
        if t >= 1:
            g[1] = jax.grad(loss, 1)(used[t - 1][0], used[t][1], x[t - 1, 0, 0])
        if t >= 2:
            g[0] = jax.grad(loss, 0)(used[t - 2][0], used[t - 1][1], x[t - 2, 0, 0])
        for i, delay in enumerate(delays):
            if t < 2 - i:
                continue  # No gradient yet: nothing moves.
            v[i] = DECAY * v[i] + g[i]
            before = w[i]
            w[i] -= RATE * (DECAY**delay * v[i] + (1 - DECAY**delay) / (1 - DECAY) * g[i])
            ahead[i] = w[i] + delay * (w[i] - before)
    assert_same(train_state.params, tuple(ahead), atol=1e-12)
    without = delayed_optimizer.without_prediction(train_state.params, train_state.opt_state)
    assert_same(without, tuple(w), atol=1e-12)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_on_a_mesh_as_on_one_device():
    network, *_ = networks.start(networks.dense_network, 3)
    frames, targets = networks.random_clip(10)
    delays = delayed_optimizer.delays_of(network)
    tx = optax.chain(
        delayed_optimizer.spike_compensation(DECAY, delays),
        optax.scale_by_learning_rate(RATE),
        delayed_optimizer.weight_prediction(delays),
    )
    losses = []
    for execution in ("scan", step.Pipeline(make_mesh(2))):
        init, train_step = step.make_train_step(
            network, squared_error, tx, rule="pipelined_backprop", update_every=1,
            execution=execution,
        )  # fmt: skip
        train_state = init(jax.random.key(0), frames[0])
        losses.append(train_step(train_state, frames, targets)[1]["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_modules_whose_gradients_are_late_move_less():
    gradients = _gradients(3)
    plain, _ = _run(optax.sgd(RATE), gradients)
    for power in (0.0, 2.0):
        tx = optax.chain(optax.sgd(RATE), delayed_optimizer.scale_by_delay(DELAYS, power))
        found, _ = _run(tx, gradients)
        for i, delay in enumerate(DELAYS):
            moved = (plain[-1][i]["w"] - 1) / (1 + delay) ** power
            np.testing.assert_allclose(found[-1][i]["w"] - 1, moved, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: delayed_optimizer.spike_compensation(1.0, (0,)), "decay=1.0 must be"),
        (lambda: delayed_optimizer.scale_by_delay((0,), -1.0), "power=-1.0 must be 0 or more"),
        (lambda: delayed_optimizer.weight_prediction((-1,)), "must not be negative"),
        (
            lambda: delayed_optimizer.weight_prediction((2, 0)).init((jnp.ones(1),) * 3),
            "2 delays for 3 modules",
        ),
        (
            lambda: delayed_optimizer.spike_compensation(0.9, (2, 0)).init(jnp.ones(1)),
            "give one for every module",
        ),
        (
            lambda: delayed_optimizer.without_prediction((jnp.ones(1),), optax.EmptyState()),
            "has no prediction",
        ),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_delays_are_in_updates():
    network = Network([networks.dense(3)] * 4)
    assert delayed_optimizer.delays_of(network, update_every=4) == (1.5, 1.0, 0.5, 0.0)
