"""Sums over many frames of parameters, activations and losses in bfloat16 and float16.

In bfloat16 256 + 1 is 256, and float16 ends at 65,504: a sum over frames has to be wider.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import Module, Network, make_mesh, step

NUM_FRAMES = 1024
BATCH = 2
WIDTH = 2
BFLOAT16_ROUNDING = 2.0**-7  # two roundings, of 8 bits each


def scale():
    """`w x`, a scalar w, whose gradient is a sum over all that there is."""

    def apply(params, state, x, *, train, rng):
        return x * params.reshape(1, 1), state

    return Module(lambda key, x: (jnp.ones((), x.dtype), ()), apply)


TWO_SCALES = Network([scale(), scale()])


def mean(output, target):
    return jnp.mean(output * target)


def clip(dtype):
    """One frame so large that in bfloat16 nothing of the others can be added to it."""
    frames = jnp.full((NUM_FRAMES, 1, 1), 0.5, dtype).at[10].set(256)
    return frames, jnp.ones_like(frames)


@functools.cache
def _jitted(network, loss_fn, **options):
    def episode(params, state, frames, targets):
        return step.episode_gradients(network, loss_fn, params, state, frames, targets, **options)

    return jax.jit(episode)


def run(network, frames, targets, *, param_dtype=None, **options):
    params, state = network.init(jax.random.key(0), frames[0])
    params = jax.tree.map(lambda x: x.astype(param_dtype or frames.dtype), params)
    return _jitted(network, mean, **options)(params, state, frames, targets)


def assert_close(actual, expected, rtol):
    """The gradients and the loss, both of which are there in other types."""
    for a, b in zip(jax.tree.leaves(actual.grads), jax.tree.leaves(expected.grads), strict=True):
        assert np.isfinite(b).all() and (b != 0).any()
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=rtol)
    assert actual.loss.dtype == np.float32
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=rtol)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    ("rule", "execution", "schedule"),
    [
        ("backprop", "scan", None),
        ("backprop", "time_parallel", None),
        ("sideways", "time_parallel", None),
        ("backprop", "depth_sharded", "blocking"),
        ("backprop", "depth_sharded", "gpipe"),
        ("backprop", "depth_sharded", "1f1b"),
    ],
)
def test_a_sum_over_frames_does_not_stall(rule, execution, schedule):
    expected = run(TWO_SCALES, *clip(jnp.float32), rule=rule)
    np.testing.assert_allclose(expected.loss, 0.75, atol=1e-3)
    actual = run(
        TWO_SCALES, *clip(jnp.bfloat16), rule=rule, execution=execution, schedule=schedule,
        mesh=make_mesh(2) if schedule else None,
    )  # fmt: skip
    assert_close(actual, expected, BFLOAT16_ROUNDING)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("execution", ["scan", "time_parallel"])
def test_gradients_have_the_dtype_of_the_parameters(execution):
    frames = jnp.ones((3, 1, 1), jnp.bfloat16)
    actual = run(TWO_SCALES, frames, frames, rule="backprop", execution=execution)
    assert {x.dtype for x in jax.tree.leaves(actual.grads)} == {jnp.dtype(jnp.bfloat16)}


def every_use(dtype, wrap):
    """A parameter for every way in which JAX adds up the gradients of its uses."""

    def init(key, x):
        row = (WIDTH,)
        params = {
            "factor": jnp.ones(row), "number": jnp.ones(()), "shift": jnp.zeros(row),
            "matrix": jnp.eye(WIDTH), "kernel": jnp.full((3, WIDTH, 2), 0.1),
            "looked_up": jnp.ones((2, *row)), "one_row": jnp.ones((3, *row)),
            "in_a_loop": jnp.ones((3, *row)), "by_a_loop": jnp.ones(row),
        }  # fmt: skip
        return params, ()

    @wrap
    def forward(params, x):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        rows = jnp.abs(x[:, 0]).astype(jnp.int32) % 2
        y = x * params["factor"][None] * params["number"].reshape(1, 1) + params["shift"][None]
        y = y @ params["matrix"] + params["looked_up"][rows] + params["one_row"][1][None]
        z = jax.lax.conv_general_dilated(
            x[:, :, None] * jnp.ones((1, 1, WIDTH), dtype), params["kernel"], (1,), "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

        def body(y, row):
            return y + (row * params["by_a_loop"])[None] * x, None

        return jax.lax.scan(body, y + z.sum(-1), params["in_a_loop"])[0]

    def apply(params, state, x, *, train, rng):
        return forward(params, x), state

    return Module(init, apply)


IN_FLOAT32 = Network([every_use(jnp.float32, lambda f: f)])


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    ("dtype", "param_dtype", "weight", "wrap"),
    [
        (jnp.bfloat16, jnp.bfloat16, 1, lambda f: f),
        (jnp.bfloat16, jnp.float32, 1, jax.checkpoint),
        (jnp.float16, jnp.float16, 512, lambda f: f),
        (jnp.float16, jnp.float16, 512, jax.checkpoint),
    ],
)
def test_all_frames_at_once_add_in_float32(dtype, param_dtype, weight, wrap):
    """Whatever the use of a parameter; the sums over frames of the last cases exceed float16."""
    draw = np.random.default_rng(0).uniform(1, 4, (NUM_FRAMES, BATCH, WIDTH))
    draw[0] *= 8 if dtype == jnp.bfloat16 else 1
    frames = jnp.asarray(draw, dtype)
    targets = jnp.full(frames.shape, weight, dtype)
    expected = run(
        IN_FLOAT32, frames.astype(jnp.float32), targets.astype(jnp.float32), rule="backprop"
    )
    if dtype == jnp.float16:
        sums = [NUM_FRAMES * np.abs(x).max() for x in jax.tree.leaves(expected.grads)]
        assert min(sums) > jnp.finfo(dtype).max
    actual = run(
        Network([every_use(dtype, wrap)]), frames, targets, param_dtype=param_dtype,
        rule="backprop", execution="time_parallel",
    )  # fmt: skip
    assert_close(actual, expected, BFLOAT16_ROUNDING)
