"""Sums, means and what they are held in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax.tools import trees

NARROW = [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", [*NARROW, jnp.float8_e4m3fn])
def test_narrow_floats_are_added_in_float32(dtype):
    assert trees.wide(dtype) == np.float32
    assert trees.wide_zeros({"w": jnp.ones(2, dtype)})["w"].dtype == np.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.int8, jnp.uint32, bool])
def test_others_are_added_in_their_own_type(dtype):
    assert trees.wide(dtype) == np.dtype(dtype)


@pytest.mark.usefixtures("x64")
def test_double_precision_stays_double():
    assert trees.wide(jnp.float64) == np.float64


def test_keys_have_no_wide_type():
    key = jax.random.key(0)
    assert trees.wide(key.dtype) == key.dtype


@pytest.mark.parametrize("dtype", NARROW)
def test_a_sum_of_a_hundred_thousand_ones(dtype):
    """bfloat16 alone stops at 256; the sum and the count are both beyond float16."""
    like = {"w": jnp.ones((2,), dtype)}
    num = 100_000

    @jax.jit
    def mean():
        add = lambda _, sums: trees.accumulate(sums, like)  # noqa: E731
        total = jax.lax.fori_loop(0, num, add, trees.wide_zeros(like))
        return trees.average(total, jnp.int32(num), like=like)["w"]

    np.testing.assert_array_equal(mean(), np.ones(2))
    assert mean().dtype == dtype


@pytest.mark.parametrize("dtype", NARROW)
def test_a_count_beyond_float16(dtype):
    total = jnp.asarray(60_000, dtype)
    mean = trees.average(total, jnp.int32(120_000))
    assert mean.dtype == dtype
    np.testing.assert_allclose(float(mean), 0.5, rtol=2**-8)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_mean_of_narrow_values_is_wide(dtype):
    values = jnp.ones(70_000, dtype)
    mean = trees.masked_mean(values, jnp.arange(70_000) >= 1)
    assert mean.dtype == np.float32
    assert mean == 1


def test_nothing_counted_is_zero():
    assert trees.masked_mean(jnp.full(3, jnp.nan), jnp.zeros(3, bool)) == 0


@pytest.mark.parametrize("dtype", [jnp.int32, bool])
def test_the_mean_of_integers_is_a_float(dtype):
    mean = trees.masked_mean(
        jnp.asarray([1, 0, 1, 1], dtype), jnp.asarray([True, True, False, True])
    )
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, 2 / 3, rtol=1e-6)
