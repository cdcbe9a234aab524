"""The end of a module that goes from frame to frame, and the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import Module
from sideways_jax.one_device.state_split import split_state

X = jnp.arange(6.0, dtype=jnp.float32).reshape(3, 2)


def make(apply, state):
    return Module(lambda key, x: ((), state), apply)


def running_mean(params, state, x, *, train, rng):
    mean = x.mean(0)
    return x - mean.reshape(1, -1), 0.5 * state + 0.5 * mean


def nested_jit(params, state, x, *, train, rng):
    @jax.jit
    def everything(state, x):
        mean = jax.jit(lambda x: x.mean(0))(x)
        return x - mean.reshape(1, -1), 0.5 * state + 0.5 * mean

    return everything(state, x)


def not_affine(params, state, x, *, train, rng):
    return 2 * x, jnp.sin(state * state) + x.sum(0)


@pytest.mark.parametrize("apply", [running_mean, nested_jit, not_affine])
def test_both_parts_together_do_what_the_module_does(apply):
    state = jnp.asarray([3.0, -2.0], jnp.float32)
    split = split_state(make(apply, state), (), state, X, None, train=True)
    y, residuals = split.forward((), jnp.full_like(state, jnp.nan), X, None)
    expected_y, expected_state = apply((), state, X, train=True, rng=None)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_allclose(split.update(state, residuals), expected_state, rtol=1e-6)


def test_the_sequential_part_is_the_cheap_one():
    state = jnp.zeros(2, jnp.float32)
    split = split_state(make(running_mean, state), (), state, X, None, train=True)
    _, residuals = split.forward((), state, X, None)
    assert [r.shape for r in residuals] == [(2,)], "no more than a mean goes from frame to frame"


def test_a_state_that_never_changes_needs_no_recursion():
    def scaled(params, state, x, *, train, rng):
        return x * state.reshape(1, -1), state

    state = jnp.asarray([2.0, 3.0], jnp.float32)
    split = split_state(make(scaled, state), (), state, X, None, train=False)
    assert split.update is None
    np.testing.assert_array_equal(split.forward((), state, X, None)[0], X * state.reshape(1, -1))


def test_an_output_that_depends_on_a_changing_state_is_refused():
    def recurrent(params, state, x, *, train, rng):
        h = jnp.tanh(x + state)
        return h, h

    with pytest.raises(ValueError, match="execution='scan'"):
        split_state(make(recurrent, X), (), X, X, None, train=True)


def test_a_state_of_another_structure_is_refused():
    with pytest.raises(ValueError, match="structure"):
        split_state(
            make(lambda params, state, x, *, train, rng: (x, (state, state)), X),
            (), X, X, None, train=True,
        )  # fmt: skip
