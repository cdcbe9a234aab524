"""DenseNet-121: every layer of a block hears all layers of the block before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.blocks import (
    IMAGENET,
    ConvNorm,
    Shared,
    average_pool,
    batch_norm,
    max_pool,
    padded_conv,
    standardised,
)
from sideways_jax.models.layers import Logits
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen

BLOCKS = (6, 12, 24, 16)  # layers of each block
BOTTLENECK = 4  # channels inside a layer, in units of what it adds
MINIMUM_SIZE = 29  # pixels, of which strides and pooling leave one


class Stem(nn.Module):
    """A 7x7 convolution of the frame, and maximum pooling: a fourth of the height and width."""

    width: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, 3]` to `[B, ceil(H / 4), ceil(W / 4), width]`."""
        x = standardised(x, IMAGENET, self.shared, MINIMUM_SIZE)
        x = ConvNorm(self.width, 7, 2, shared=self.shared, name="stem")(x, train=train)
        return max_pool(x, 3, 2, 1)


class DenseLayer(nn.Module):
    """A bottleneck whose output goes along with its input."""

    growth: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H, W, C + growth]`."""
        y = batch_norm(x, self.shared, train=train, name="norm1")
        y = padded_conv(BOTTLENECK * self.growth, 1, 1, self.shared, name="conv1")(y)
        y = batch_norm(y, self.shared, train=train, name="norm2")
        y = padded_conv(self.growth, 3, 1, self.shared, name="conv2")(y)
        return jnp.concatenate([x, y.astype(x.dtype)], axis=-1)


class Transition(nn.Module):
    """Between two blocks: half of the channels, height and width."""

    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H // 2, W // 2, C // 2]`."""
        x = batch_norm(x, self.shared, train=train)
        return average_pool(padded_conv(x.shape[-1] // 2, 1, 1, self.shared)(x), 2, 2)


class Head(nn.Module):
    """Batch normalisation, ReLU, global average pooling, and the linear layer of the logits."""

    num_classes: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, classes]`."""
        x = batch_norm(x, self.shared, train=train)
        return Logits(self.num_classes, pool=True, name="logits", **self.shared.types)(x)


def densenet121(
    num_classes: int,
    *,
    growth: int = 32,
    batch_norm_axis: str | None = None,
    cut: Sequence[int] = (3, 2, 2, 7, 6, 15, 11, 17),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """DenseNet-121 (Huang et al., CVPR 2017): a stem, blocks of 6, 12, 24 and 16 layers, a head.

    63 layers, with the transitions between blocks. A layer adds 32 channels to those that it hears,
    so what goes from module to module is all that the block has made so far. `[B, H, W, 3]` becomes
    `[B, num_classes]`; frames of integers are divided by 255 and standardised by the mean and
    deviation of ImageNet's colours.

    Args:
      num_classes: how many logits.
      growth: the channels that a layer adds; the stem has twice as many.
      batch_norm_axis: as for `vgg8`.
      cut: how many consecutive layers each module takes; D = 8 by default, of similar cost at
        224x224 pixels.
      dtype: of the activations, such as `jnp.bfloat16`; by default that of the frames and
        parameters. The last layer always computes in `param_dtype`.
      param_dtype: of the parameters.

    Raises:
      ValueError: if the sizes in `cut` do not add up to the number of layers. When the network is
        initialised or applied: if frames are smaller than 29x29 pixels.

    >>> densenet121(num_classes=51).depth
    8
    """
    shared = Shared(dtype, param_dtype, batch_norm_axis)
    layers: list[nn.Module] = [Stem(2 * growth, shared)]
    for block, count in enumerate(BLOCKS):
        layers += [Transition(shared)] if block else []
        layers += [DenseLayer(growth, shared) for _ in range(count)]
    layers.append(Head(num_classes, shared))
    return network.cut([from_linen(layer) for layer in layers], cut)
