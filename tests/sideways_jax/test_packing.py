"""Vectors that hold pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax.packing import Packing

TREES = (
    {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.int32(7), jnp.asarray([True, False]))},
    (),
    [jnp.arange(4, dtype=jnp.bfloat16), jnp.ones((2, 2)), jnp.zeros((0, 5))],
)


@pytest.mark.parametrize("device", range(3))
def test_what_is_packed_comes_out_again(device):
    packing = Packing.of(TREES)
    packed = packing.pack(device, TREES[device], padding=jnp.nan)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), packed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), packing.shapes()
    )
    unpacked = packing.unpack(device, packed)
    assert jax.tree.structure(unpacked) == jax.tree.structure(TREES[device])
    for actual, expected in zip(
        jax.tree.leaves(unpacked), jax.tree.leaves(TREES[device]), strict=True
    ):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


def test_vectors_are_as_long_as_the_largest_needs_and_padded_at_the_end():
    packing = Packing.of(TREES)
    assert packing.lengths == {"bfloat16": 4, "bool": 2, "float32": 6, "int32": 1}
    packed = packing.pack(2, TREES[2], padding=jnp.nan)
    np.testing.assert_array_equal(packed["float32"], [1, 1, 1, 1, np.nan, np.nan])
    assert np.isnan(packing.pack(1, (), padding=jnp.nan)["bfloat16"]).all()
    np.testing.assert_array_equal(packed["int32"], [0])  # Integers have no NaN.


def test_bytes():
    packing = Packing.of(TREES)
    assert packing.bytes_held == 4 * 2 + 2 + 6 * 4 + 4
    assert packing.bytes_used == (6 * 4 + 4 + 2, 0, 4 * 2 + 4 * 4)


def test_nothing_to_pack():
    packing = Packing.of([(), {}])
    assert packing.lengths == {}
    assert packing.pack(0, ()) == {}
    assert packing.unpack(1, {}) == {}
