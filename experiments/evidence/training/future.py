"""Learns on a stream what it will show: all of some numbers of steps ahead, in one output.

The stream is of moving solids, every slot of the batch a scene without end. A network of four
modules paints, at every step, the frames that will come 1, 2, 3, 5, 7 and 10 steps after the newest
one. Three modules encode; the last one paints, at full size. What it paints of comes up the main
path, three steps late, so that without a shortcut 4 to 13 steps are to be bridged. With one it
hears the newest frame as well, paints by how much that will change, and sees motion.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from data import default_config, load_streams
from experiments.evidence.training.networks import Hearing
from experiments.jobs.autoencoding.rules import make_learning
from sideways_jax import Network, from_linen
from sideways_jax.models.autoencoder import PIXEL_RANGE, pixels, squared_error
from sideways_jax.models.layers import conv, fan_in_normal

AHEAD = (1, 2, 3, 5, 7, 10)  # steps
DEPTH = 4
CHUNK = 12 * (2 * DEPTH - 1)  # frames; blocking backprop takes one of 2D-1


class Size(NamedTuple):
    """Of the network and of the stream."""

    pixels: int = 24
    width: int = 16  # channels of every module
    stride: int = 2  # every how many-th frame of the scene arrives
    streams: int = 4


SMOKE = Size(pixels=8, width=4, streams=1)


class Painter(nn.Module):
    """The last module: as many frames as there are in `AHEAD`, side by side in the channels."""

    width: int

    @nn.compact
    def __call__(self, heard: jax.Array | tuple) -> jax.Array:
        """`[B, H/2, W/2, C]`, with a frame `[B, H, W, 3]` or without, to `[B, H, W, 18]`."""
        main, *frames = heard if isinstance(heard, tuple) else (heard,)
        known = [pixels(frame, PIXEL_RANGE, main.dtype) for frame in frames]
        main = main.repeat(2, axis=1).repeat(2, axis=2)
        x = Hearing(self.width, 1)((main, *known))
        channels = 3 * len(AHEAD)
        # Near zero at first: with a shortcut the network begins near the frame itself.
        x = conv(channels, 3, kernel_init=fan_in_normal(0.01))(x)
        x = x + self.param("bias", nn.initializers.zeros, (channels,))[None, None, None]
        return x + jnp.tile(known[0], len(AHEAD)) if known else x


@functools.cache
def network_of(width: int, hears: bool) -> Network:
    """Three convolutions and a painter, which hears the frame or does not."""
    layers = [Hearing(width, 2 if not i else 1) for i in range(DEPTH - 1)]
    shortcuts = ((-1, DEPTH - 1),) if hears else ()
    return Network([from_linen(layer) for layer in (*layers, Painter(width))], shortcuts)


@functools.lru_cache(maxsize=2)
def stream(size: Size, count: int, seed: int) -> np.ndarray:
    """Frames, and the future of the last: uint8 `[count + 10, B, H, W, 3]`."""
    config = default_config("moving_solids")
    config.size, config.stride, config.batch_size = size.pixels, size.stride, size.streams
    # The first scene of slot b begins b/B of the way through: so none ends.
    config.length = size.streams * (count + AHEAD[-1])
    playing = load_streams(config, seed=seed)
    try:
        return np.stack([next(playing)["frames"] for _ in range(count + AHEAD[-1])])
    finally:
        playing.close()


def targets(frames: np.ndarray) -> np.ndarray:
    """`[T, B, H, W, 18]` of `[T + 10, B, H, W, 3]`: what is there so many steps later."""
    count = len(frames) - AHEAD[-1]
    return np.concatenate([frames[n : n + count] for n in AHEAD], axis=-1)


def errors(
    rule: str, hears: bool, rate: float, size: Size, count: int, seed: int
) -> dict[str, list[float]]:
    """Mean squared errors in the last quarter of the stream, one for each of `AHEAD`.

    Black is 0, white is 1. Gradient descent with an update at every step (blocking backprop: at one
    of 2D-1).

    Args:
      rule: of `make_learning`.
      hears: whether the last module hears the frame.
      rate: of gradient descent.
      size: of the network and of the stream.
      count: how many frames, a multiple of `CHUNK`, at least four of them.
      seed: of scenes and parameters.

    Returns:
      "errors" of what is painted, and "repeated", those of showing the newest frame.
    """
    frames = stream(size, count, seed)
    future, frames = targets(frames), frames[:count]
    network = network_of(size.width, hears)
    init, train_step = make_learning(rule, network, squared_error(), optax.sgd(rate))
    train_state = jax.jit(init)(jax.random.key(seed), frames[0], future[0])
    train_step = jax.jit(train_step, donate_argnums=0)
    painted, repeated = [], []
    for start in range(0, count, CHUNK):
        part, wanted = frames[start : start + CHUNK], future[start : start + CHUNK]
        train_state, _, outputs = train_step(train_state, part, wanted)
        if start >= 0.75 * count:
            painted.append(_by_number(np.asarray(outputs.outputs), wanted))
            repeated.append(_by_number(np.tile(part / np.float32(255), len(AHEAD)), wanted))
    means = {"errors": painted, "repeated": repeated}
    return {name: np.mean(some, axis=0).tolist() for name, some in means.items()}


def _by_number(shown: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Errors `[6]` of `[K, B, H, W, 18]` and pixels of the same shape."""
    square = np.square(shown - wanted / np.float32(255)).mean(axis=(0, 1, 2, 3))
    return square.reshape(len(AHEAD), 3).mean(axis=1)
