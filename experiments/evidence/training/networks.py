"""Small convolutional networks, of any depth, whose upper modules may hear the frame as well."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from sideways_jax import Network, from_linen
from sideways_jax.models import Concatenate
from sideways_jax.models.layers import Logits, conv, he_normal


class Hearing(nn.Module):
    """A 3x3 convolution, a bias and a ReLU, of everything that the module hears."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, heard: jax.Array | tuple) -> jax.Array:
        """`[B, H, W, C]`, or a tuple of such arrays."""
        x = Concatenate()(heard)
        x = conv(self.width, 3, self.stride, kernel_init=he_normal)(x)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return nn.relu(x + bias[None, None, None])


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
