"""Slots that hold pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax.devices.packing import Packing

TREES = (
    {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.int32(7), jnp.asarray([True, False]))},
    (),
    [jnp.arange(4, dtype=jnp.bfloat16), jnp.ones((2, 2)), jnp.zeros((0, 5))],
)


def _assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _shapes(packing):
    return {name: v.shape for name, v in packing.slots.items()}


@pytest.mark.parametrize("matrices", [False, True])
@pytest.mark.parametrize("device", range(3))
def test_what_is_packed_comes_out_again(device, matrices):
    packing = Packing.of(TREES, matrices=matrices)
    packed = packing.pack(device, TREES[device], padding=jnp.nan)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), packed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), packing.slots
    )
    _assert_equal(packing.unpack(device, packed), TREES[device])


def test_the_largest_leaves_of_all_devices_share_a_vector_padded_at_the_end():
    packing = Packing.of(TREES)
    assert _shapes(packing) == {
        "bfloat16 000": (4,), "bool 000": (2,), "float32 000": (6,), "int32 000": (1,),
    }  # fmt: skip  # No "float32 001" for the leaf of size 0: jaxlib 0.11.2 cannot compile it.
    packed = packing.pack(2, TREES[2], padding=jnp.nan)
    np.testing.assert_array_equal(packed["float32 000"], [1, 1, 1, 1, np.nan, np.nan])
    assert np.isnan(packing.pack(1, (), padding=jnp.nan)["bfloat16 000"]).all()
    np.testing.assert_array_equal(packed["int32 000"], [0])  # Integers have no NaN.


def test_a_small_leaf_does_not_wait_for_a_large_one():
    """By size, not by order: otherwise padding would be as large as what is held."""
    packing = Packing.of([(jnp.ones(2), jnp.ones(9)), (jnp.ones(8), jnp.ones(3))])
    assert _shapes(packing) == {"float32 000": (9,), "float32 001": (3,)}


def test_matrices_lie_in_the_corner_of_others():
    """Where they fit; one that would make the slot larger than a slot of its own gets its own."""
    trees = [(jnp.ones((4, 6)), jnp.ones(5)), jnp.ones((2, 1, 3)), jnp.ones((20, 1))]
    packing = Packing.of(trees, matrices=True)
    assert _shapes(packing) == {
        "float32 000": (5,), "float32 matrix 000": (4, 6), "float32 matrix 001": (20, 1),
    }  # fmt: skip
    corner = packing.pack(1, trees[1], padding=jnp.nan)["float32 matrix 000"]
    np.testing.assert_array_equal(corner[:2, :3], np.ones((2, 3)))
    assert np.isnan(corner).sum() == 24 - 6


@pytest.mark.parametrize("matrices", [False, True])
@pytest.mark.parametrize("device", range(3))
def test_what_other_devices_have_is_left_alone(device, matrices):
    """Sums and new parameters are written over a part of the slots."""
    packing, ones = Packing.of(TREES, matrices=matrices), jax.tree.map(jnp.ones_like, TREES[device])
    packed = packing.pack(device, TREES[device], padding=jnp.nan)
    put = jax.jit(packing.put, static_argnums=0)(device, packed, ones)
    _assert_equal(packing.unpack(device, put), ones)
    if device == 1:  # It has nothing; elsewhere truth values cannot be added.
        added = packing.plus(device, packed, ones)
        assert all(added[name] is slot for name, slot in packed.items())
    if device == 2:
        added = jax.jit(packing.plus, static_argnums=0)(device, packed, ones)
        two = jax.tree.map(lambda x: x + 1, TREES[device])
        _assert_equal(packing.unpack(device, added), two)
        _assert_equal(*(jax.tree.map(jnp.isnan, x) for x in (added, packed)))
    _assert_equal(*(jax.tree.map(jnp.isnan, x) for x in (put, packed)))


def test_bytes():
    packing = Packing.of(TREES)
    assert packing.bytes_held == 4 * 2 + 2 + 6 * 4 + 4
    assert packing.bytes_used == (6 * 4 + 4 + 2, 0, 4 * 2 + 4 * 4)


def test_nothing_to_pack():
    packing = Packing.of([(), {}])
    assert packing.slots == {}
    assert packing.pack(0, ()) == {}
    assert packing.unpack(1, {}) == {}


def test_keys_lie_as_their_data():
    """They lie in vectors of their own, apart from numbers, and come back unchanged."""
    trees = (
        {"key": jax.random.key(1), "more": jax.random.split(jax.random.key(2), (2, 3))},
        {"other": jax.random.key(3, impl="rbg"), "count": jnp.uint32(4)},
    )
    packing = Packing.of(trees)
    assert _shapes(packing) == {
        "key<fry> 000": (12,), "key<fry> 001": (2,), "key<rbg> 000": (4,), "uint32 000": (1,),
    }  # fmt: skip
    assert {v.dtype for v in packing.slots.values()} == {jnp.dtype("uint32")}
    assert packing.bytes_held == 4 * (12 + 2 + 4 + 1)
    assert packing.bytes_used == (4 * 14, 4 * 5)
    for device, tree in enumerate(trees):
        packed = jax.jit(packing.pack, static_argnums=0)(device, tree)
        unpacked = jax.jit(packing.unpack, static_argnums=0)(device, packed)
        for actual, expected in zip(jax.tree.leaves(unpacked), jax.tree.leaves(tree), strict=True):
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
            if jnp.issubdtype(actual.dtype, jax.dtypes.prng_key):
                actual, expected = jax.random.key_data(actual), jax.random.key_data(expected)
            np.testing.assert_array_equal(actual, expected)


def test_leaves_without_elements_share_a_vector():
    packing = Packing.of([(jnp.ones(2), jnp.ones(0), jnp.ones((0, 3))), (jnp.ones(1),) * 3])
    assert _shapes(packing) == {"float32 000": (2,), "float32 001": (1,), "float32 002": (1,)}
    packed = packing.pack(0, (jnp.ones(2), jnp.ones(0), jnp.ones((0, 3))))
    assert [x.shape for x in packing.unpack(0, packed)] == [(2,), (0,), (0, 3)]
