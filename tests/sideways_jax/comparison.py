"""Comparing pytrees strictly: structure, shapes, types, and then numbers."""

import jax
import numpy as np

EXACT = 1e-10


def assert_same(actual, expected, atol=EXACT, what=""):
    """Fails unless two pytrees agree in structure, shapes and dtypes, and to `atol` in value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), what
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        name = what + jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, f"{name}: {a.dtype} instead of {b.dtype}"
        assert a.shape == b.shape, f"{name}: {a.shape} instead of {b.shape}"
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def assert_same_episode(actual, expected, atol=EXACT):
    """Fails unless an `Episode` of the library is that of the reference."""
    np.testing.assert_array_equal(actual.num_grads, expected.num_grads)
    assert actual.num_grads.dtype == np.int32
    np.testing.assert_array_equal(actual.valid, expected.valid)
    assert actual.valid.dtype == bool
    assert_same(actual.outputs, expected.outputs, atol, "outputs")
    assert_same(actual.loss, expected.loss, atol, "loss")
    assert_same(actual.grads, expected.grads, atol, "grads")
    assert_same(actual.state, expected.state, atol, "state")


def largest_difference(a, b):
    """The largest absolute difference between the leaves of two pytrees."""
    differences = jax.tree.map(lambda x, y: np.max(np.abs(x - y), initial=0.0), a, b)
    return max(jax.tree.leaves(differences))
