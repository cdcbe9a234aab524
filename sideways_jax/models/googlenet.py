"""GoogLeNet (Inception v1): blocks of four branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.blocks import IMAGENET, ConvNorm, Shared, max_pool, standardised
from sideways_jax.models.layers import Logits
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen


class Widths(NamedTuple):
    """The channels of a block: of its branches, and of what feeds two of them."""

    one: int  # 1x1
    before_three: int
    three: int  # 3x3
    before_five: int
    five: int  # 3x3; 5x5 in the paper
    pooled: int  # 1x1 of the maxima

    def divided(self, divisor: int) -> Widths:
        """A part of the channels."""
        return Widths(*(width // divisor for width in self))


# The blocks, and the window of the maximum pooling after them, if any; its stride is 2.
BLOCKS = (
    (Widths(64, 96, 128, 16, 32, 32), 0),
    (Widths(128, 128, 192, 32, 96, 64), 3),
    (Widths(192, 96, 208, 16, 48, 64), 0),
    (Widths(160, 112, 224, 24, 64, 64), 0),
    (Widths(128, 128, 256, 24, 64, 64), 0),
    (Widths(112, 144, 288, 32, 64, 64), 0),
    (Widths(256, 160, 320, 32, 128, 128), 2),
    (Widths(256, 160, 320, 32, 128, 128), 0),
    (Widths(384, 192, 384, 48, 128, 128), 0),
)


class First(nn.Module):
    """A 7x7 convolution of the frame, and maximum pooling: a fourth of the height and width."""

    width: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, 3]` to `[B, H / 4, W / 4, width]`."""
        x = standardised(x, IMAGENET, self.shared)
        x = ConvNorm(self.width, 7, 2, shared=self.shared, name="conv1")(x, train=train)
        return max_pool(x, 3, 2)


class Second(nn.Module):
    """A 1x1 and a 3x3 convolution, and maximum pooling."""

    width: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, width]` to `[B, H / 2, W / 2, 3 * width]`."""
        x = ConvNorm(self.width, 1, shared=self.shared, name="conv2")(x, train=train)
        x = ConvNorm(3 * self.width, 3, shared=self.shared, name="conv3")(x, train=train)
        return max_pool(x, 3, 2)


class Inception(nn.Module):
    """Four branches, side by side: 1x1, 3x3, 3x3 of fewer channels, and maxima."""

    widths: Widths
    pool: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H, W, one + three + five + pooled]`, or half of H and W."""

        def one(x: jax.Array, width: int, kernel: int, name: str) -> jax.Array:
            return ConvNorm(width, kernel, shared=self.shared, name=name)(x, train=train)

        widths = self.widths
        branches = [
            one(x, widths.one, 1, "one"),
            one(one(x, widths.before_three, 1, "before_three"), widths.three, 3, "three"),
            one(one(x, widths.before_five, 1, "before_five"), widths.five, 3, "five"),
            one(max_pool(x, 3, 1, 1), widths.pooled, 1, "pooled"),
        ]
        x = jnp.concatenate(branches, axis=-1)
        return max_pool(x, self.pool, 2) if self.pool else x


class Head(nn.Module):
    """Global average pooling, dropout, and the linear layer of the logits."""

    num_classes: int
    dropout_rate: float
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, classes]`."""
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x.mean((1, 2)))
        return Logits(self.num_classes, name="logits", **self.shared.types)(x)


def googlenet(
    num_classes: int,
    *,
    divisor: int = 1,
    dropout_rate: float = 0.2,
    batch_norm_axis: str | None = None,
    cut: Sequence[int] = (1, 1, 2, 3, 2, 3),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """GoogLeNet (Szegedy et al., CVPR 2015), batch-normalised, without its auxiliary classifiers.

    Twelve layers: two of convolutions, nine blocks of four branches, a head. As in torchvision, the
    third branch has 3x3 convolutions, 5x5 in the paper. `[B, H, W, 3]` becomes `[B, num_classes]`,
    for any height and width; frames of integers are divided by 255 and standardised by the mean and
    deviation of ImageNet's colours.

    Args:
      num_classes: how many logits.
      divisor: of all numbers of channels, for small networks; up to 16.
      dropout_rate: the probability of dropping a channel before the last layer.
      batch_norm_axis: as for `vgg8`.
      cut: how many consecutive layers each module takes; D = 6 by default.
      dtype: of the activations, such as `jnp.bfloat16`; by default that of the frames and
        parameters. The last layer always computes in `param_dtype`.
      param_dtype: of the parameters.

    Raises:
      ValueError: if the divisor leaves no channel, or if the sizes in `cut` do not add up to the
        number of layers.

    >>> googlenet(num_classes=51).depth
    6
    """
    if not 1 <= divisor <= 16:
        raise ValueError(f"divisor={divisor} of 16 channels must be from 1 to 16")
    shared = Shared(dtype, param_dtype, batch_norm_axis, epsilon=1e-3)
    layers: list[nn.Module] = [First(64 // divisor, shared), Second(64 // divisor, shared)]
    layers += [Inception(widths.divided(divisor), pool, shared) for widths, pool in BLOCKS]
    layers.append(Head(num_classes, dropout_rate, shared))
    return network.cut([from_linen(layer) for layer in layers], cut)
