"""Updates of the optimizers, and the learning rate, against exact numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax.training.paper_optimizer import learning_rate_schedule, make_optimizer

CONSTANT = {"steps_per_epoch": 10, "warmup_epochs": 0, "drop_epochs": ()}


def run(tx, theta, gradients):
    """The parameters after every update; one parameter, a scalar."""
    theta = {"theta": jnp.float32(theta)}
    state, values = tx.init(theta), []
    for gradient in gradients:
        updates, state = tx.update({"theta": jnp.float32(gradient)}, state, theta)
        theta = optax.apply_updates(theta, updates)
        values.append(float(theta["theta"]))
    return values


def test_schedule_of_the_paper():
    rate = jax.jit(learning_rate_schedule(1e-4, steps_per_epoch=20))
    expected = {
        0: 0.0,
        1: 1e-6,
        50: 5e-5,
        99: 0.99e-4,
        100: 1e-4,  # The end of epoch 5.
        1999: 1e-4,
        2000: 1e-5,  # The end of epoch 100.
        3999: 1e-5,
        4000: 1e-6,
        10**6: 1e-6,
    }
    for step, value in expected.items():
        assert rate(jnp.int32(step)).dtype == jnp.float32
        np.testing.assert_allclose(rate(jnp.int32(step)), value, rtol=1e-6)


def test_schedule_without_warm_up_and_with_other_drops():
    rate = learning_rate_schedule(
        2.0, steps_per_epoch=4, warmup_epochs=0, drop_epochs=(0.5, 1, 2), drop_factor=0.5
    )
    assert [float(rate(step)) for step in range(9)] == [2, 2, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_first_update_of_the_warm_up_moves_nothing():
    tx = make_optimizer("sgd", 1.0, steps_per_epoch=2, warmup_epochs=2)
    np.testing.assert_allclose(run(tx, 0.0, [-1.0] * 6), [0, 0.25, 0.75, 1.5, 2.5, 3.5])


def test_sgd():
    tx = make_optimizer("sgd", 0.5, **CONSTANT)
    np.testing.assert_allclose(run(tx, 1.0, [0.5, -0.25]), [0.75, 0.875])


def test_momentum():
    tx = make_optimizer("momentum", 0.1, momentum=0.5, **CONSTANT)
    # u = 1, 0.5 + 0 = 0.5, 0.25 - 1 = -0.75
    np.testing.assert_allclose(run(tx, 0.0, [1.0, 0.0, -1.0]), [-0.1, -0.15, -0.075], rtol=1e-6)


def test_adam():
    tx = make_optimizer("adam", 0.1, **CONSTANT)
    theta, m, v, expected = 1.0, 0.0, 0.0, []
    gradients = [0.5, -0.2, 0.9]
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(theta)
    np.testing.assert_allclose(run(tx, 1.0, gradients), expected, rtol=1e-5)


def test_clipping_comes_first_and_goes_by_element():
    tx = make_optimizer("momentum", 1.0, momentum=0.5, **CONSTANT)
    # Clipped after the momentum, the second would be 1 as well: u = 1, 0.5 + 1 = 1.5.
    np.testing.assert_allclose(run(tx, 0.0, [10.0, 3.0]), [-1, -2.5])
    theta = jnp.zeros(3)
    tx = make_optimizer("sgd", 1.0, clip_value=0.5, **CONSTANT)
    updates, _ = tx.update(jnp.array([0.25, -7.0, 0.75]), tx.init(theta), theta)
    np.testing.assert_array_equal(updates, np.float32([-0.25, 0.5, -0.5]))
    tx = make_optimizer("sgd", 1.0, clip_value=None, **CONSTANT)
    np.testing.assert_allclose(run(tx, 0.0, [10.0]), [-10])


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_weight_decay_is_decoupled_from_the_gradient(name):
    """Without a gradient, all that is left is the decay: no momentum, no Adam, no clipping."""
    tx = make_optimizer(name, 0.5, weight_decay=0.1, **CONSTANT)
    expected = [100 * 0.95, 100 * 0.95**2, 100 * 0.95**3]  # 1 - lr * wd
    np.testing.assert_allclose(run(tx, 100.0, [0.0] * 3), expected, rtol=1e-6)
    tx = make_optimizer(name, 0.5, weight_decay=0.1, decay_coupling="schedule", **CONSTANT)
    expected = [100 * 0.9, 100 * 0.9**2, 100 * 0.9**3]  # 1 - wd
    np.testing.assert_allclose(run(tx, 100.0, [0.0] * 3), expected, rtol=1e-6)


@pytest.mark.parametrize(("coupling", "rates"), [("learning_rate", 0.5), ("schedule", 1.0)])
def test_the_schedule_scales_the_decay_in_both_couplings(coupling, rates):
    tx = make_optimizer(
        "sgd",
        0.5,
        steps_per_epoch=1,
        warmup_epochs=2,
        drop_epochs=(3,),
        weight_decay=0.1,
        decay_coupling=coupling,
    )
    # lr_t / lr: 0, 0.5, 1, 0.1
    factors = [1 - 0.1 * rates * scale for scale in (0, 0.5, 1, 0.1)]
    np.testing.assert_allclose(run(tx, 1.0, [0.0] * 4), np.cumprod(factors), rtol=1e-6)


def test_adam_with_decay_is_adamw():
    ours = make_optimizer("adam", 0.01, clip_value=None, weight_decay=0.1, **CONSTANT)
    gradients = [0.5, -2.0, 3.0]
    with jax.numpy_dtype_promotion("standard"):  # optax alone cannot do with strict promotion.
        expected = run(optax.adamw(0.01, weight_decay=0.1), 1.0, gradients)
    np.testing.assert_allclose(run(ours, 1.0, gradients), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
@pytest.mark.usefixtures("x64")
def test_updates_have_the_dtype_of_the_parameters(dtype):
    tx = make_optimizer("adam", 0.1, steps_per_epoch=1, weight_decay=0.1)
    theta = ({"kernel": jnp.ones((2, 3), dtype)}, ())
    updates, _ = jax.jit(tx.update)(theta, tx.init(theta), theta)
    assert updates[0]["kernel"].dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adm"}, "unknown optimizer 'adm'; did you mean 'adam'"),
        ({"decay_coupling": "scedule"}, "did you mean 'schedule'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be greater than 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 must be at least 1: use a smaller batch"),
        ({"momentum": 1.0}, "momentum=1.0 must be at least 0 and below 1"),
        ({"clip_value": 0}, "clip_value=0 must be greater than 0; None for no clipping"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001 must not be negative"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1 must not be negative"),
        ({"drop_factor": 0}, "drop_factor=0 must be greater than 0"),
        ({"drop_epochs": (200, 100)}, r"drop_epochs=\(200, 100\) must be in increasing order"),
        ({"drop_epochs": (3,)}, "before the end of the warm-up, warmup_epochs=5"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    options = {"name": "adam", "learning_rate": 1e-4, "steps_per_epoch": 10, **options}
    with pytest.raises(ValueError, match=message):
        make_optimizer(**options)
