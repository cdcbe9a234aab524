"""ResNet-18 and ResNet-50, residual networks of 2-D convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.blocks import IMAGENET, ConvNorm, Shared, max_pool, standardised
from sideways_jax.models.layers import Logits
from sideways_jax.models.pretrained import Layout
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}  # of the four stages
STAGES = 4
EXPANSION = 4  # of a bottleneck: output channels to inner ones


class Stem(nn.Module):
    """A 7x7 convolution of the frame, and maximum pooling: a fourth of the height and width."""

    width: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, 3]` to `[B, ceil(H / 4), ceil(W / 4), width]`."""
        x = standardised(x, IMAGENET, self.shared)
        x = ConvNorm(self.width, 7, 2, shared=self.shared, name="layer0")(x, train=train)
        return max_pool(x, 3, 2, 1)


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of three, whose output is added to the input."""

    width: int  # of the inner convolutions
    stride: int
    bottleneck: bool
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), C']`."""
        shared, heard = self.shared, x
        if self.bottleneck:  # The stride is in the 3x3 convolution, as in torchvision.
            layers = [
                (self.width, 1, 1), (self.width, 3, self.stride), (EXPANSION * self.width, 1, 1)
            ]  # fmt: skip
        else:
            layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        last = len(layers) - 1
        for n, (width, kernel, stride) in enumerate(layers):
            one = ConvNorm(width, kernel, stride, n < last, shared, name=f"layer{n}")
            x = one(x, train=train)
        if heard.shape[-1] != x.shape[-1] or self.stride != 1:
            one = ConvNorm(x.shape[-1], 1, self.stride, False, shared, name="shortcut")
            heard = one(heard, train=train)
        return nn.relu(x + heard)


def resnet18(
    num_classes: int,
    *,
    width: int = 64,
    batch_norm_axis: str | None = None,
    cut: Sequence[int] = (2, 2, 2, 2, 2),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """ResNet-18 (He et al., CVPR 2016): a stem, eight blocks of two 3x3 convolutions, a head.

    Ten layers, with the shapes for frames of 224x224 pixels:

    ==========  =======  ========  ======
    layers      pixels   channels  stride
    ==========  =======  ========  ======
    stem          56x56        64       4
    2 blocks      56x56        64       1
    2 blocks      28x28       128       2
    2 blocks      14x14       256       2
    2 blocks        7x7       512       2
    logits               classes
    ==========  =======  ========  ======

    `[B, H, W, 3]` becomes `[B, num_classes]`, for any height and width. Frames of integers are
    divided by 255 and standardised by the mean and deviation of ImageNet's colours.

    Args:
      num_classes: how many logits.
      width: the channels of the stem; those of the blocks are multiples of it.
      batch_norm_axis: as for `vgg8`.
      cut: how many consecutive layers each module takes; D = 5 by default, of similar cost.
      dtype: of the activations, such as `jnp.bfloat16`; by default that of the frames and
        parameters. The last layer always computes in `param_dtype`.
      param_dtype: of the parameters.

    Raises:
      ValueError: if the sizes in `cut` do not add up to the number of layers.

    >>> resnet18(num_classes=51).depth
    5
    """
    shared = Shared(dtype, param_dtype, batch_norm_axis)
    return _resnet(num_classes, "resnet18", width, cut, shared)


def resnet50(
    num_classes: int,
    *,
    width: int = 64,
    batch_norm_axis: str | None = None,
    cut: Sequence[int] = (3, 2, 2, 2, 2, 2, 2, 3),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """ResNet-50 (He et al., CVPR 2016): a stem, sixteen bottlenecks, a head; 18 layers.

    The stages have 3, 4, 6 and 3 bottlenecks with 256, 512, 1024 and 2048 channels; the stride of a
    bottleneck is in its 3x3 convolution ("version 1.5"). By default D = 8, of similar cost at
    224x224 pixels. All else is as for `resnet18`.

    Raises:
      ValueError: if the sizes in `cut` do not add up to the number of layers.

    >>> resnet50(num_classes=51).depth
    8
    """
    shared = Shared(dtype, param_dtype, batch_norm_axis)
    return _resnet(num_classes, "resnet50", width, cut, shared)


def _resnet(
    num_classes: int, name: str, width: int, cut: Sequence[int], shared: Shared
) -> network.Network:
    layers: list[nn.Module] = [Stem(width, shared)]
    for stage, count in enumerate(BLOCKS[name]):
        layers += [
            Block(width * 2**stage, 2 if n == 0 and stage else 1, name == "resnet50", shared)
            for n in range(count)
        ]
    layers.append(Logits(num_classes, pool=True, **shared.types))
    return network.cut([from_linen(layer) for layer in layers], cut)


def layout(name: str) -> Layout:
    """Where a file of the library `transformers` has the weights (`microsoft/resnet-50`)."""
    blocks = [
        f"resnet.encoder.stages.{stage}.layers.{n}"
        for stage, count in enumerate(BLOCKS[name])
        for n in range(count)
    ]
    return Layout(
        base="resnet",
        layers=("resnet.embedder", *blocks, "classifier.1"),
        names={"shortcut": "shortcut", "conv": "convolution", "norm": "normalization", "linear": ""}
        | {f"layer{n}": f"layer.{n}" for n in range(3)},
        of_layer={0: {"layer0": "embedder"}},
        ignored=(".num_batches_tracked",),
    )
