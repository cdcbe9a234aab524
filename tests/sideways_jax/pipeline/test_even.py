"""Devices that all run the same program: no choice between branches, the same answer."""

import jax
import jax.numpy as jnp
import optax
import pytest

from sideways_jax import Module, Network, make_mesh, step
from sideways_jax.rule.task import Task
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import TOLERANCE, assert_close, clip, episode, variables

WIDTH = networks.NUM_OUTPUTS


def _equal_blocks(depth, activation=None):
    """Modules of the same shapes, with a state and dropout; one may have another activation."""
    modules = [
        networks.chain(
            networks.dense(WIDTH), networks.batch_norm(), networks.dropout(), networks.counter()
        )
        for _ in range(depth)
    ]
    if activation is not None:
        plain = modules[2]

        def apply(params, state, x, *, train, rng):
            y, state = plain.apply(params, state, x, train=train, rng=rng)
            return activation(y), state

        modules[2] = Module(plain.init, apply)
    return Network(modules)


def _lowered(network, num_devices, **options):
    options["execution"] = step.Pipeline(make_mesh(num_devices))
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(0.1, 0.9), **options)
    train_state = init(jax.random.key(0), jax.ShapeDtypeStruct((2, WIDTH), jnp.float32))
    frames, targets = clip(2 * network.depth, (WIDTH,), "float32", batch=2)
    return jax.jit(train_step).lower(train_state, frames, targets).as_text()


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("options", [{}, {"update_every": 1}])
def test_no_device_chooses_a_branch(num_devices, options):
    assert "stablehlo.case" not in _lowered(_equal_blocks(4), num_devices, **options)


def test_another_function_in_one_module_is_noticed():
    assert "stablehlo.case" in _lowered(_equal_blocks(4, jnp.sin), 2)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("activation", [None, jnp.sin])
@pytest.mark.parametrize("num_devices", [2, 4])
def test_an_episode_is_that_of_scan(num_devices, activation):
    network = _equal_blocks(4, activation)
    start, rng = variables(network, (WIDTH,)), jax.random.key(sharding.RNG_SEED)
    frames = clip(9, (WIDTH,))
    pipeline = step.Pipeline(make_mesh(num_devices))
    actual = pipeline.episode(Task(network, squared_error), *start, *frames, rng, bubble=jnp.nan)
    assert_close(actual, episode(network, *start, *frames, rng=rng), TOLERANCE["float64"])
