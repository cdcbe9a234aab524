"""The optimizer of a config against optax, and against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.configs.common import base_config
from experiments.running.optimizer import make_schedule, make_tx, params_for_tests

GRADIENTS = [np.array([0.3, -0.2]), np.array([-0.9, 0.5]), np.array([0.1, 0.4]), np.array([2, 1.0])]


def options(**fields):
    config = base_config().optimizer
    config.warmup_epochs, config.drop_epochs, config.clip_value = 0.0, (), 0.0
    config.learning_rate = 0.1
    for name, value in fields.items():
        config[name] = value
    return config


def trained(tx, gradients=GRADIENTS):
    """The parameters after every gradient, and the last state."""
    params, seen = jnp.array([1.0, -2.0]), []
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return np.stack(seen), state


def test_adamw_is_that_of_optax():
    ours, _ = trained(make_tx(options(name="adamw", weight_decay=0.05), 10))
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = trained(optax.adamw(0.1, weight_decay=0.05))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_a_cosine_after_the_warm_up():
    schedule = make_schedule(options(cosine_epochs=5.0, warmup_epochs=1.0), steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 5, 10, 30, 50, 80)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.05, 0, 0], atol=1e-7)
    expected = optax.warmup_cosine_decay_schedule(0, 0.1, 10, 50)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(float(schedule(37)), expected(37), rtol=1e-5)


def test_accumulated_gradients_are_those_of_a_larger_batch():
    one, _ = trained(make_tx(options(accumulate=2, cosine_epochs=2.0), 4))
    pairs = [(a + b) / 2 for a, b in zip(GRADIENTS[::2], GRADIENTS[1::2], strict=True)]
    two, _ = trained(make_tx(options(cosine_epochs=2.0), 2), pairs)
    assert (one[0] == [1.0, -2.0]).all()
    np.testing.assert_allclose(one[1::2], two, rtol=1e-6)
    schedule = make_schedule(options(accumulate=2, cosine_epochs=2.0), steps_per_epoch=4)
    assert float(schedule(2)) == float(schedule(3)) < float(schedule(1)) == pytest.approx(0.1)


def test_the_average_of_the_parameters():
    with_ema, state = trained(make_tx(options(ema=0.5), 10))
    alone, _ = trained(make_tx(options(), 10))
    np.testing.assert_array_equal(with_ema, alone)
    average = np.array([1.0, -2.0])
    for t, params in enumerate(alone, start=1):
        kept = min(0.5, (1 + t) / (10 + t))
        average = kept * average + (1 - kept) * params
    np.testing.assert_allclose(params_for_tests(None, state), average, rtol=1e-6)
    assert params_for_tests("own", make_tx(options(), 10).init(jnp.ones(2))) == "own"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"accumulate": 11}, "accumulate=11 batches are more than the 10 of an epoch"),
        ({"ema": 1.0}, r"ema=1\.0 must be at least 0 and below 1"),
        ({"cosine_epochs": 1.0, "warmup_epochs": 2.0}, "must be after the warm-up"),
    ],
)
def test_values_out_of_range(fields, said):
    with pytest.raises(ValueError, match=said):
        make_tx(options(**fields), 10)
