"""Small networks and clips for the tests: every kind of module, in plain JAX.

Nothing here comes from the library but `Module` and `Network`, so that a mistake in its helpers
cannot hide in its tests.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax import Module, Network

BATCH = 3
NUM_OUTPUTS = 3
PIXELS = (6, 6, 2)
WIDTHS = (7, 4, 6, 5, 8)


POOL = 512


def _draw(key, shape, dtype, scale=1.0):
    """Normal numbers; all shapes draw from a pool of one size, which is compiled once."""
    return _take(jax.random.normal(key, (POOL,), dtype), shape, scale)


@functools.partial(jax.jit, static_argnames=("shape", "scale"))
def _take(pool, shape, scale):
    return scale * pool[: math.prod(shape)].reshape(shape)


# Layers -----------------------------------------------------------------------------------------


def dense(width, activation=jnp.tanh):
    """`activation(x W + b)`."""

    def init(key, x):
        kernel_key, bias_key = jax.random.split(key)
        fan_in = x.shape[-1]
        return {
            "kernel": _draw(kernel_key, (fan_in, width), x.dtype, fan_in**-0.5),
            "bias": _draw(bias_key, (1, width), x.dtype, 0.3),
        }, ()

    def apply(params, state, x, *, train, rng):
        return activation(x @ params["kernel"] + params["bias"]), state

    return Module(init, apply)


def linear(width):
    return dense(width, activation=lambda x: x)


def tanh():
    def apply(params, state, x, *, train, rng):
        return jnp.tanh(x), state

    return Module(_nothing, apply)


def unit():
    """`x / ||x||` of every example: no number at zero, and no gradient."""

    def apply(params, state, x, *, train, rng):
        return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)), state

    return Module(_nothing, apply)


def root():
    """`sqrt(|x| w)`: zero at zero, where its gradient is no number."""

    def init(key, x):
        return 1 + jnp.abs(_draw(key, (1, x.shape[-1]), x.dtype)), ()

    def apply(params, state, x, *, train, rng):
        return jnp.sqrt(jnp.abs(x) * params), state

    return Module(init, apply)


def conv(features, stride=1):
    """A 3x3 convolution without bias, NHWC, `SAME`; its parameters are a bare array."""

    def init(key, x):
        shape = (3, 3, x.shape[-1], features)
        return _draw(key, shape, x.dtype, (9 * x.shape[-1]) ** -0.5), ()

    def apply(params, state, x, *, train, rng):
        y = jax.lax.conv_general_dilated(
            x, params, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y), state

    return Module(init, apply)


def batch_norm(momentum=0.9):
    """Statistics of this batch when training, running ones otherwise."""

    def init(key, x):
        width = x.shape[-1:]
        params = {
            "scale": 1 + _draw(key, width, x.dtype, 0.2),
            "bias": 0.1 * jnp.ones(width, x.dtype),
        }
        return params, {"mean": jnp.zeros(width, x.dtype), "var": jnp.ones(width, x.dtype)}

    def apply(params, state, x, *, train, rng):
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            new_state = {
                "mean": momentum * state["mean"] + (1 - momentum) * mean,
                "var": momentum * state["var"] + (1 - momentum) * var,
            }
        else:
            mean, var, new_state = state["mean"], state["var"], state
        scale = params["scale"] / jnp.sqrt(var + 1e-3)
        row = (1,) * (x.ndim - 1) + mean.shape
        return (x - mean.reshape(row)) * scale.reshape(row) + params["bias"].reshape(row), new_state

    return Module(init, apply)


def dropout(rate=0.4):
    def apply(params, state, x, *, train, rng):
        if not train:
            return x, state
        if rng is None:
            raise ValueError("dropout needs a key to train")
        keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x)), state

    return Module(_nothing, apply)


def key_bits():
    """Multiplies by 1 to 4, read off the bits of the key: dropout without drawing anything.

    A generator of random numbers takes longer to compile than all the rest of a network.
    """

    def apply(params, state, x, *, train, rng):
        if not train:
            return x, state
        if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            rng = jax.random.key_data(rng)
        shifts = jnp.arange(x.shape[-1], dtype=rng.dtype) % 16 * 2
        factors = 1 + (rng[-1] >> shifts) % 4
        return x * factors.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)), state

    return Module(_nothing, apply)


def counter():
    """Counts the frames it was trained on, an integer state; passes its input on."""

    def init(key, x):
        return {}, {"frames": jnp.zeros((), jnp.int32)}

    def apply(params, state, x, *, train, rng):
        return x, {"frames": state["frames"] + 1} if train else state

    return Module(init, apply)


def flatten():
    def apply(params, state, x, *, train, rng):
        return x.reshape(x.shape[0], -1), state

    return Module(_nothing, apply)


def to_float():
    """Bytes to `-1..1` in the default float type; floats stay what they are."""

    def apply(params, state, x, *, train, rng):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return x, state
        return x.astype(jnp.result_type(float)) / 127.5 - 1, state

    return Module(_nothing, apply)


def unit_length():
    """`x / |x|`: not a number at zero, forward and backward, so that zeros cannot pass unseen."""

    def apply(params, state, x, *, train, rng):
        return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), state

    return Module(_nothing, apply)


def fork(width):
    """From an array to a dictionary that holds a tuple."""
    main = dense(width)

    def apply(params, state, x, *, train, rng):
        h, state = main.apply(params, state, x, train=train, rng=rng)
        return {"main": h, "skip": (x, jnp.sin(h))}, state

    return Module(main.init, apply)


def inside(layer):
    """Runs a layer on the `main` part of what `fork` gives, and passes the rest on."""

    def init(key, x):
        return layer.init(key, x["main"])

    def apply(params, state, x, *, train, rng):
        h, state = layer.apply(params, state, x["main"], train=train, rng=rng)
        return {"main": h, "skip": x["skip"]}, state

    return Module(init, apply)


def join():
    """From what `fork` gives back to an array."""

    def apply(params, state, x, *, train, rng):
        parts = (x["main"], *x["skip"])
        return jnp.concatenate(parts, axis=-1), state

    return Module(_nothing, apply)


def _nothing(key, x):
    return (), ()


def chain(*layers):
    """Several layers in one module. They share its key, so that only one of them may use it."""

    def init(key, x):
        params, state = [], []
        keys = jax.random.split(key, len(layers))
        for layer, layer_key in zip(layers, keys, strict=True):
            layer_params, layer_state = layer.init(layer_key, x)
            params.append(layer_params)
            state.append(layer_state)
            x = _shape_after(layer, layer_params, layer_state, x)
        return tuple(params), tuple(state)

    def apply(params, state, x, *, train, rng):
        new_state = []
        for j, layer in enumerate(layers):
            x, layer_state = layer.apply(params[j], state[j], x, train=train, rng=rng)
            new_state.append(layer_state)
        return x, tuple(new_state)

    return Module(init, apply)


def _shape_after(layer, params, state, x):
    return jax.eval_shape(
        lambda p, s, h: layer.apply(p, s, h, train=False, rng=None)[0], params, state, x
    )


def left_and_right():
    """Takes a dictionary of two arrays and gives an array."""

    def apply(params, state, x, *, train, rng):
        return jnp.sin(params * x["left"] + x["right"]), state

    return Module(lambda key, x: (jnp.full((1, 1), 0.7, x["left"].dtype), ()), apply)


def fading():
    """Divides by how many frames there were: a state that the output depends on."""

    def init(key, x):
        return (), jnp.ones((), x.dtype)

    def apply(params, state, x, *, train, rng):
        return x / state, state + 1 if train else state

    return Module(init, apply)


def cumulative_mean():
    """Remembers the mean and the maximum of all it saw: a state no moving average describes."""

    def init(key, x):
        zeros = jnp.zeros(x.shape[-1:], x.dtype)
        return {}, {"count": jnp.zeros((), x.dtype), "mean": zeros, "max": zeros}

    def apply(params, state, x, *, train, rng):
        if not train:
            return x, state
        count = state["count"] + 1
        return x, {
            "count": count,
            "mean": state["mean"] + (x.mean(0) - state["mean"]) / count,
            "max": jnp.maximum(state["max"], x.max(0)),
        }

    return Module(init, apply)


# Networks: functions of D -----------------------------------------------------------------------


def _cut(layers, depth):
    """Cuts layers into D modules, as even as can be; the larger ones come first."""
    bounds = np.linspace(len(layers), 0, depth + 1).astype(int)[::-1]
    groups = [layers[a:b] for a, b in itertools.pairwise(bounds)]
    return Network([group[0] if len(group) == 1 else chain(*group) for group in groups])


def dense_network(depth):
    """Dense layers of uneven widths and a linear one. Takes vectors."""
    return Network([*(dense(width) for width in WIDTHS[: depth - 1]), linear(NUM_OUTPUTS)])


def batch_norm_network(depth):
    """Batch norm in every second module, and in the first. Takes vectors."""
    normed = [chain(linear(width), batch_norm(), tanh()) for width in WIDTHS[: depth - 1]]
    plain = [dense(width) for width in WIDTHS[: depth - 1]]
    hidden = [normed[i] if i % 2 == 0 else plain[i] for i in range(depth - 1)]
    last = linear(NUM_OUTPUTS)
    return Network([*hidden, last] if hidden else [chain(batch_norm(), last)])


def dropout_network(depth):
    """Dropout in every module. Takes vectors."""
    hidden = [chain(dense(width), dropout()) for width in WIDTHS[: depth - 1]]
    return Network([*hidden, chain(dropout(0.2), linear(NUM_OUTPUTS))])


def fragile_network(depth):
    """Not a number wherever a module is run on zeros. Takes vectors."""
    hidden = [chain(unit_length(), dense(width)) for width in WIDTHS[: depth - 1]]
    return Network([*hidden, chain(unit_length(), linear(NUM_OUTPUTS))])


def remembering_network(depth):
    """States that change in other ways than those of batch norm. Takes vectors."""
    hidden = [chain(dense(width), cumulative_mean()) for width in WIDTHS[: depth - 1]]
    return Network([*hidden, chain(counter(), linear(NUM_OUTPUTS))])


def mixed_network(depth):
    """Everything at once; where D is large, some modules have neither parameters nor state.

    Needs a key to train. Takes images, floats or bytes.
    """
    return _mixed(depth, inside(chain(dense(4), key_bits())))


def keyless_mixed_network(depth):
    """The mixed network without the layer that uses a key. Takes images, floats or bytes."""
    return _mixed(depth, inside(dense(4)))


def _mixed(depth, middle):
    layers = [
        chain(to_float(), conv(3, stride=2), batch_norm()),
        counter(),
        chain(flatten(), fork(5)),
        middle,
        join(),
        linear(NUM_OUTPUTS),
    ]
    return _cut(layers, depth)


IMAGE_NETWORKS = (mixed_network, keyless_mixed_network)


# Clips ------------------------------------------------------------------------------------------


def start(make_network, depth):
    """`(network, params, state)`, the same objects for the same question.

    So that tests share what JAX compiled for them.
    """
    return _start(make_network, depth, jnp.result_type(float))


@functools.cache
def _start(make_network, depth, dtype):
    network = make_network(depth)
    frame = jax.ShapeDtypeStruct((BATCH, *frame_shape(make_network)), dtype)
    return network, *network.init(jax.random.key(depth), frame)


def frame_shape(make_network):
    return PIXELS if make_network in IMAGE_NETWORKS else (5,)


def random_clip(num_frames, shape=(5,), seed=0):
    """Frames `[K, B, *shape]` and targets `[K, B, outputs]` without any smoothness."""
    draw = np.random.default_rng(seed)
    frames = draw.normal(size=(num_frames, BATCH, *shape))
    targets = draw.normal(size=(num_frames, BATCH, NUM_OUTPUTS))
    return _as_float(frames), _as_float(targets)


def constant_clip(num_frames, shape=(5,), seed=0):
    """The same frame and target K times."""
    frames, targets = random_clip(1, shape, seed)
    return jnp.repeat(frames, num_frames, axis=0), jnp.repeat(targets, num_frames, axis=0)


def smooth_clip(num_frames, speed, shape=(5,), seed=0):
    """A straight path through the space of frames, `speed` a frame; the target stays."""
    (start, direction), targets = random_clip(2, shape, seed)
    frames = [start + speed * t * direction for t in range(num_frames)]
    return jnp.stack(frames), jnp.repeat(targets[:1], num_frames, axis=0)


def byte_clip(num_frames, shape=PIXELS, seed=0):
    """Frames as a decoder gives them: uint8."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, BATCH, *shape))
    return jnp.asarray(frames, jnp.uint8), random_clip(num_frames, shape, seed)[1]


def _as_float(array):
    return jnp.asarray(array, jnp.result_type(float))


def squared_error(output, target):
    """`|h - y|^2`, the mean over the batch."""
    return jnp.mean(jnp.sum((output - target) ** 2, axis=-1))
