"""Simple-CNN, the smaller network of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.layers import Logits, as_frames, conv, he_normal
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen

WIDTHS = (32, 64, 64, 128, 256)


class ConvReLU(nn.Module):
    """A 3x3 convolution and a ReLU."""

    width: int
    stride: int
    first: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), width]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.first:
            x = as_frames(x, self.dtype or self.param_dtype)
        return nn.relu(conv(self.width, 3, self.stride, kernel_init=he_normal, **types)(x))


def simple_cnn(
    num_classes: int,
    *,
    widths: Sequence[int] = WIDTHS,
    cut: Sequence[int] = (1,) * 6,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """Simple-CNN (section 4.3): five 3x3 convolutions, average pooling, a linear layer. D = 6.

    ======  ========  ======  ====================================
    layer   channels  stride
    ======  ========  ======  ====================================
    conv1         32       2  ReLU
    conv2         64       1  ReLU
    conv3         64       2  ReLU
    conv4        128       1  ReLU
    conv5        256       2  ReLU
    logits   classes          after global average pooling; a bias
    ======  ========  ======  ====================================

    Frames may have any height, width and number of channels: `[B, H, W, C]` becomes
    `[B, num_classes]`. Frames of integers are divided by 255. The paper does not say the
    padding (here SAME) and the initialisation (here He et al.'s: there is no batch normalisation).

    Args:
      num_classes: how many logits.
      widths: the channels of the convolutions; another number of widths needs another `cut`.
      cut: how many consecutive layers each module takes; one by default.
      dtype: of the activations, such as `jnp.bfloat16`; by default that of the frames and
        parameters. The last layer always computes in `param_dtype`.
      param_dtype: of the parameters.

    Raises:
      ValueError: if the sizes in `cut` do not add up to the number of layers.

    >>> simple_cnn(num_classes=10).depth
    6
    >>> simple_cnn(num_classes=10, cut=(2, 2, 2)).depth
    3
    """
    types = {"dtype": dtype, "param_dtype": param_dtype}
    layers: list[nn.Module] = [
        # "striding 2 in every second layer starting from the first one"
        ConvReLU(width, stride=2 if n % 2 == 0 else 1, first=n == 0, **types)
        for n, width in enumerate(widths)
    ]
    layers.append(Logits(num_classes, pool=True, **types))
    return network.cut([from_linen(layer) for layer in layers], cut)
