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


def with_receiver(receiver: int, num_classes: int, depth: int = 5) -> Network:
    """A network of which one module, of three convolutions, hears the frame.

    What needs two frames is in one module. Below it are convolutions of 8 channels, the lowest with
    stride 2; above it are convolutions of 32, and in the last module a linear layer. The last
    module can be the receiver itself.

    Args:
      receiver: 1 to depth - 1.
      num_classes: how many logits.
      depth: D.

    >>> with_receiver(4, 8).shortcuts
    ((-1, 4),)
    """
    layers: list[list[nn.Module]] = [[Hearing(8, 1 if i else 2)] for i in range(receiver)]
    layers.append([Hearing(16, 1), Hearing(32, 2), Hearing(32, 1)])
    layers.extend([Hearing(32, 1)] for _ in range(receiver + 1, depth - 1))
    if receiver < depth - 1:
        layers.append([])
    layers[-1].append(Logits(num_classes, pool=True))
    return Network([from_linen(nn.Sequential(some)) for some in layers], ((-1, receiver),))
