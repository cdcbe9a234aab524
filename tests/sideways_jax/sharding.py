"""What the tests of executions share: networks with their variables, clips, comparisons."""

import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax import Network, from_linen, models, step
from tests.sideways_jax import networks
from tests.sideways_jax.networks import squared_error

BATCH = 4
RNG_SEED = 5
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative to the largest entry of a leaf


class Case(NamedTuple):
    """A network and the frames that it takes."""

    network: Network
    frame: tuple[int, ...]

    @property
    def shortest(self):
        return 2 * self.network.depth - 1


def uneven_network():
    """D = 7: batch norm, dropout, a counter, dictionaries, parameters of very different sizes."""
    return Network(
        [
            networks.chain(networks.to_float(), networks.conv(3, 2), networks.batch_norm()),
            networks.counter(),
            networks.chain(networks.flatten(), networks.fork(5)),
            networks.inside(networks.chain(networks.dense(4), networks.key_bits())),
            networks.chain(networks.join(), networks.batch_norm(0.8)),
            networks.chain(networks.dense(12), networks.dropout(0.2)),
            networks.linear(networks.NUM_OUTPUTS),
        ]
    )


def vector_network():
    """D = 5: a state and keys, and quick to compile."""
    layers = networks
    return Network(
        [
            layers.chain(layers.dense(7), layers.batch_norm()),
            layers.counter(),
            layers.chain(layers.dense(4), layers.key_bits()),
            layers.chain(layers.dense(9), layers.cumulative_mean()),
            layers.linear(networks.NUM_OUTPUTS),
        ]
    )


class _Normalised(nn.Module):
    """A linear layer and Flax's batch norm, with statistics over an axis of the mesh."""

    width: int
    axis_name: str | None
    param_dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        types = {"param_dtype": self.param_dtype}
        x = nn.Dense(self.width, **types)(x)
        options = {"axis_name": self.axis_name, "force_float32_reductions": False}
        return nn.tanh(nn.BatchNorm(use_running_average=not train, **options, **types)(x))


def _normalised(axis_name, param_dtype):
    return Network([from_linen(_Normalised(n, axis_name, param_dtype)) for n in (7, 4, 3)])


@functools.cache
def case(name, dtype="float64"):
    types = {"param_dtype": jnp.dtype(dtype)}
    vgg = {"widths": (4, 5, 6, 6, 6), "hidden": (12, 8), **types}
    return {
        "simple_cnn": lambda: Case(
            models.simple_cnn(3, widths=(4, 5, 6, 7, 8), **types), (16, 16, 3)
        ),
        "vgg8": lambda: Case(models.vgg8(3, dropout_rate=0.5, **vgg), (27, 27, 3)),
        "vgg8, sure": lambda: Case(models.vgg8(3, dropout_rate=0.0, **vgg), (27, 27, 3)),
        "vgg8, reduced": lambda: Case(
            models.vgg8(3, dropout_rate=0.0, batch_norm_axis="data", **vgg), (27, 27, 3)
        ),
        "uneven": lambda: Case(uneven_network(), networks.PIXELS),
        "vectors": lambda: Case(vector_network(), (5,)),
        "normalised": lambda: Case(_normalised(None, **types), (5,)),
        "normalised, reduced": lambda: Case(_normalised("data", **types), (5,)),
    }[name]()


def draw(shape, dtype, seed, scale=1.0):
    """Normal numbers from NumPy: JAX would compile a generator for every shape."""
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def variables(network, frame, dtype="float64"):
    """Parameters and a state of the right shapes; statistics and counters start as they should."""
    shape = jax.ShapeDtypeStruct((BATCH, *frame), dtype)
    params, state = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    leaves, structure = jax.tree.flatten(params)
    leaves = [draw(leaf.shape, dtype, seed, 0.4) for seed, leaf in enumerate(leaves)]
    state = jax.tree.map(lambda leaf: jnp.asarray(np.ones(leaf.shape, leaf.dtype)), state)
    return jax.tree.unflatten(structure, leaves), state


def clip(num_frames, frame, dtype="float64", batch=BATCH):
    targets = (num_frames, batch, networks.NUM_OUTPUTS)
    return draw((num_frames, batch, *frame), dtype, 100), draw(targets, dtype, 101)


def episode(network, *arguments, rng=None, loss_fn=squared_error, **options):
    """`step.episode_gradients` under `jax.jit`; the same question twice is compiled once."""
    return jitted_episode(network, loss_fn, **options)(*arguments, rng)


@functools.cache
def jitted_episode(network, loss_fn, **options):
    """`step.episode_gradients` as a function of `params, state, frames, targets, rng`."""

    def run(params, state, frames, targets, rng):
        return step.episode_gradients(
            network, loss_fn, params, state, frames, targets, rng=rng, **options
        )

    return jax.jit(run)


def assert_close(actual, expected, tolerance):
    """Fails unless two pytrees agree: numbers to `tolerance` times the largest of a leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert np.isfinite(b).all(), f"{name}: nothing to compare with"
        atol = tolerance * max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def loop_bodies(hlo):
    """The computations of a program other than its entry, as text."""
    parts = re.split(r"\n(?=%|ENTRY )", hlo)
    return "\n".join(part for part in parts if not part.lstrip().startswith("ENTRY"))
