"""Blocking BP on a stream: its clock, and that it learns as plain backprop does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import step
from sideways_jax.one_device import blocking
from tests.sideways_jax import networks
from tests.sideways_jax.comparison import assert_same
from tests.sideways_jax.networks import BATCH, squared_error

RATE = 0.05


def test_the_clock_of_figure_3():
    """D = 5: frames 1, 10, 19 of the paper, eight dropped in between, each output held for nine."""
    clock = blocking.clock(5, 27)
    assert [t + 1 for t in clock.taken if t >= 0] == [1, 10, 19]
    assert clock.dropped.tolist() == ([False] + [True] * 8) * 3
    shown = [-1] * 4 + [0] * 9 + [9] * 9 + [18] * 5
    assert clock.shown.tolist() == shown


def test_the_clock_of_inference():
    clock = blocking.clock(5, 12, train=False)
    assert [t for t in clock.taken if t >= 0] == [0, 5, 10]
    assert clock.shown.tolist() == [-1] * 4 + [0] * 5 + [5] * 3


def _step(depth):
    network, params, state = networks.start(networks.batch_norm_network, depth)
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(RATE, momentum=0.9), with_outputs=True,
        rule="backprop", update_every=1,
        metrics_fn=lambda y, t: {"again": squared_error(y, t)},
    )  # fmt: skip
    frames, targets = networks.random_clip(5 * (2 * depth - 1))
    start = init(jax.random.key(0), frames[0])._replace(params=params, state=state)
    return network, start, jax.jit(train_step), frames, targets


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_frame_that_is_taken_is_one_step_of_backprop(depth):
    network, start, train_step, frames, targets = _step(depth)
    tx = optax.sgd(RATE, momentum=0.9)
    params, state, opt_state = start.params, start.state, tx.init(start.params)
    clock = blocking.clock(depth, len(frames))
    outputs = {-1: jnp.zeros_like(targets[0])}

    @jax.jit
    def backprop(params, state, opt_state, frame, target):
        def loss(params):
            output, new = network.apply(params, state, frame, train=True)
            return squared_error(output, target), (output, new)

        grads, (output, state) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, output

    for t in clock.taken[clock.taken >= 0]:
        params, state, opt_state, outputs[t] = backprop(
            params, state, opt_state, frames[t], targets[t]
        )

    train_state, metrics = start, []
    shown, seen = [], []
    for k in (slice(0, 4), slice(4, len(frames))):  # The clock goes on from call to call.
        train_state, one, out = train_step(train_state, frames[k], targets[k])
        metrics.append(one)
        shown.append(out.frames)
        seen.append(out.outputs)
    np.testing.assert_array_equal(np.concatenate(shown), np.stack([clock.shown] * BATCH, 1))
    assert_same(np.concatenate(seen), np.stack([outputs[t] for t in clock.shown]))
    assert_same(train_state.params, params)
    assert_same(train_state.state, state)
    assert int(train_state.step) == (clock.taken >= 0).sum()
    assert int(train_state.frames) == len(frames)
    late = [
        squared_error(outputs[n], targets[t])
        for t, n in enumerate(clock.shown)
        if t >= 4 and n >= 0
    ]
    assert metrics[1]["loss"] == pytest.approx(float(np.mean(late)), abs=1e-10)
    assert metrics[1]["again"] == pytest.approx(float(np.mean(late)), abs=1e-10)


@pytest.mark.usefixtures("quick_compile")
def test_what_is_left_of_a_stream_is_not_shown_to_the_next():
    _, start, train_step, frames, targets = _step(3)
    reset = np.zeros((len(frames), BATCH), bool)
    reset[7, 1] = True  # A frame of the old stream, the number 5, is on its way then.
    _, _, out = train_step(start, frames, targets, reset)
    clock = blocking.clock(3, len(frames))
    np.testing.assert_array_equal(out.frames[:, 0], clock.shown)
    expected = np.where((np.arange(len(frames)) >= 7) & (clock.shown < 7), -1, clock.shown)
    np.testing.assert_array_equal(out.frames[:, 1], expected)
    assert (np.asarray(out.outputs)[out.frames < 0] == 0).all()


@pytest.mark.usefixtures("quick_compile")
def test_inference_shows_what_the_clock_says():
    network, params, state = networks.start(networks.batch_norm_network, 4)
    frames, _ = networks.random_clip(11)
    held = blocking.init_held(network, params, state, frames[0])
    first, one = blocking.show(network, params, state, held, frames[:3])
    _, two = blocking.show(network, params, state, first, frames[3:], first_frame_id=3)
    clock = blocking.clock(4, 11, train=False)
    shown = np.concatenate([one.frames, two.frames])
    np.testing.assert_array_equal(shown, np.stack([clock.shown] * BATCH, 1))
    outputs = np.concatenate([one.outputs, two.outputs])
    for t, n in enumerate(clock.shown):
        expected = 0 * outputs[t] if n < 0 else network.apply(params, state, frames[n])[0]
        assert_same(outputs[t], np.asarray(expected), atol=1e-6)
