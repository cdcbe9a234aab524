"""Small convolutional networks, of any depth, whose upper modules may hear the frame as well."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax import Network, from_linen
from sideways_jax.models.layers import Logits, as_frames, conv, he_normal


class Hearing(nn.Module):
    """A 3x3 convolution, a bias and a ReLU, of everything that the module hears."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, heard: jax.Array | tuple) -> jax.Array:
        """`[B, H, W, C]`, or a tuple, whose parts are averaged down to the size of the first."""
        parts = heard if isinstance(heard, tuple) else (heard,)
        main, *others = (as_frames(part, jnp.float32) for part in parts)
        x = jnp.concatenate([main, *(_at_size_of(main, other) for other in others)], axis=-1)
        x = conv(self.width, 3, self.stride, kernel_init=he_normal)(x)
        return nn.relu(x + self.param("bias", nn.initializers.zeros, (self.width,)))


def _at_size_of(main: jax.Array, other: jax.Array) -> jax.Array:
    factor = other.shape[1] // main.shape[1]
    return nn.avg_pool(other, (factor, factor), (factor, factor))


def convolutional(
    widths: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    shortcuts: Sequence[tuple[int, int]] = (),
) -> Network:
    """A convolution in every module, and a linear layer of the mean over pixels in the last.

    Args:
      widths, strides: of the convolutions.
      num_classes: how many logits.
      shortcuts: from the frame, `(-1, module)`, to convolutions (`Network`).

    >>> convolutional((4, 4), (1, 2), 8, shortcuts=[(-1, 1)]).depth
    3
    """
    layers = [Hearing(width, stride) for width, stride in zip(widths, strides, strict=True)]
    modules = [from_linen(layer) for layer in (*layers, Logits(num_classes, pool=True))]
    return Network(modules, tuple(shortcuts))
