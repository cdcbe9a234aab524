"""Models as users have them, before they are cut; none of them knows of modules."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from sideways_jax import boundary

FRAMES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def video(steps, batch=3, seed=0, like=FRAMES):
    """Frames `[K, B, ...]` and targets `[K, B, 4]`."""
    one, two = jax.random.split(jax.random.key(seed))
    frames = jax.random.normal(one, (steps, batch, *like.shape[1:]), like.dtype)
    return frames, jax.random.normal(two, (steps, batch, 4), like.dtype)


class ConvNet(nn.Module):
    """Convolutions with batch normalisation, dropout, and a residual connection."""

    marked: bool = False
    rate: float = 0.5
    widths: tuple = (4, 6, 6, 8)

    @nn.compact
    def __call__(self, x, *, train):
        def mark(x):
            return boundary(x) if self.marked else x

        for n, width in enumerate(self.widths):
            y = nn.Conv(width, (3, 3), 2 if n == 0 else 1)(x)
            y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y))
            y = nn.Dropout(self.rate, deterministic=not train)(y)
            x = x + y if x.shape == y.shape else y
            x = mark(x) if n % 2 else x
        return nn.Dense(4)(x.mean((1, 2)))


class UNet(nn.Module):
    """Features of the way down skip to the way up."""

    marked: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        def mark(x):
            return boundary(x) if self.marked else x

        def conv(x, width, stride=1):
            x = nn.Conv(width, (3, 3), stride)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))

        fine = mark(conv(x, 4))
        middle = mark(conv(fine, 6, 2))
        coarse = mark(conv(middle, 8, 2))
        up = jnp.concatenate([nn.ConvTranspose(6, (2, 2), (2, 2))(coarse), middle], -1)
        up = mark(conv(up, 6))
        up = jnp.concatenate([nn.ConvTranspose(4, (2, 2), (2, 2))(up), fine], -1)
        return nn.Conv(2, (1, 1))(conv(up, 4)).mean((1, 2)) @ jnp.ones((2, 4), x.dtype)


class DenseNet(nn.Module):
    """Every layer hears all layers before it."""

    marked: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        for _ in range(4):
            y = nn.relu(nn.Conv(3, (3, 3))(x))
            x = jnp.concatenate([x, boundary(y) if self.marked else y], -1)
        return nn.Dense(4)(x.mean((1, 2)))


class NnxNet(nnx.Module):
    """The same ideas in NNX; the layers are in a list."""

    def __init__(self, rngs):
        self.convs = nnx.List(
            nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in ((3, 4), (4, 6), (6, 6))
        )
        self.norms = nnx.List(nnx.BatchNorm(b, rngs=rngs) for b in (4, 6, 6))
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.dropout(nnx.relu(norm(conv(x))))
        return self.head(x.mean((1, 2)))


def mlp(params, state, frame, train, key):
    """A plain function: casts of all weights first, counters, keys, a loop, and a scalar."""
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), params["layers"])
    x = frame.reshape(frame.shape[0], -1)
    for n, w in enumerate(weights):
        x = jax.nn.relu(x @ w)
        if train and key is not None:
            keep = jax.random.bernoulli(jax.random.fold_in(key, n), 0.5, x.shape)
            x = jnp.where(keep, 2 * x, 0.0)
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["loop"])
    return x * params["scale"], {"calls": state["calls"] + 1}


def mlp_variables(width=6, depth=5, frame=FRAMES):
    keys = jax.random.split(jax.random.key(3), depth + 1)
    inputs = frame.shape[1] * frame.shape[2] * frame.shape[3]
    sizes = [inputs, *[width] * (depth - 1), 4]
    layers = [
        jax.random.normal(key, (a, b)) / a**0.5
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]
    loop = jax.random.normal(keys[-1], (2, 4, 4))
    params = {"layers": layers, "loop": loop, "scale": jnp.float32(1.5)}
    return params, {"calls": jnp.int32(0)}


def tied(params, state, frame, train, key):
    """The weights of the first layer are those of the last, transposed."""
    x = frame.reshape(frame.shape[0], -1)
    hidden = jnp.tanh(x @ params["outside"])
    hidden = jnp.tanh(hidden @ params["inside"])
    return (hidden @ params["outside"].T)[:, :4], state


def tied_variables(frame=FRAMES):
    inputs = frame.shape[1] * frame.shape[2] * frame.shape[3]
    one, two = jax.random.split(jax.random.key(3))
    return {
        "outside": jax.random.normal(one, (inputs, 5)) / inputs**0.5,
        "inside": jax.random.normal(two, (5, 5)),
    }, ()
