"""Layers and checks that the convolutional networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.conv import conv_general_dilated


def fan_in_normal(scale: float) -> nn.initializers.Initializer:
    """`variance_scaling(scale, "fan_in", "truncated_normal")` of flax, faster to compile.

    The same numbers are drawn as a vector: XLA takes 4 to 6 times as long, seconds for every new
    shape, to compile the generator for the shape of a convolution kernel.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        vector = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
        # 0.88 is the standard deviation of a standard normal that is cut off at -2 and 2.
        std = math.sqrt(scale / math.prod(shape[:-1])) / 0.87962566103423978
        return (vector * std).reshape(shape)

    return init


lecun_normal = fan_in_normal(1.0)  # flax's default
# He et al. (2015): for layers followed by a ReLU without batch normalisation in between. It keeps
# the second moment of the activations; flax's default would halve it.
he_normal = fan_in_normal(2.0)


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    kernel_init: Any = lecun_normal,
    name: str = "conv",
    **options: Any,
) -> nn.Conv:
    """A 2-D convolution with SAME padding, without bias, whose gradients are fast inside loops.

    Args:
      features: the channels of the output.
      kernel, stride: in pixels, the same in height and width.
      kernel_init: the initialisation of the kernel.
      name: of the layer.
      **options: of `flax.linen.Conv`.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        use_bias=False,
        kernel_init=kernel_init,
        conv_general_dilated=conv_general_dilated,
        name=name,
        **options,
    )


class Logits(nn.Module):
    """The linear layer of the logits, the only layer with a bias (section 4.3).

    It computes in `param_dtype` also when `dtype` is given: sums over classes need the precision.
    """

    num_classes: int
    pool: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, C]`, or `[B, H, W, C]` with `pool` (global average pooling), to `[B, classes]`."""
        if self.pool:
            x = x.mean((1, 2))
        dtype = None if self.dtype is None else self.param_dtype
        return nn.Dense(
            self.num_classes,
            kernel_init=lecun_normal,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="linear",
        )(x)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of every 2x2 pixels; an odd last row or column is left out, as VALID does.

    The same as `flax.linen.max_pool(x, (2, 2), (2, 2))`, except that equally large pixels share the
    gradient. It takes maxima of slices: the gradient of `flax.linen.max_pool`, select-and-scatter,
    takes XLA's CPU backend 5 to 20 times as long.

    >>> max_pool(jnp.arange(15).reshape(1, 3, 5, 1))[0, ..., 0]
    Array([[6, 8]], dtype=int32)
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    x = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(x[:, :, 0:width:2], x[:, :, 1:width:2])


def check_frames(x: jax.Array, minimum_size: int = 1) -> None:
    """Raises ValueError unless `x` is a batch of frames `[B, H, W, C]` that are large enough.

    Args:
      x: the batch.
      minimum_size: the smallest H and W, in pixels.
    """
    if x.ndim != 4:
        raise ValueError(
            f"a batch of frames must have the shape [B, H, W, C], got {list(x.shape)}: add the "
            "missing axis, or take one frame of every video of a batch of clips"
        )
    height, width = x.shape[1:3]
    if min(height, width) < minimum_size:
        raise ValueError(
            f"frames of {height}x{width} pixels are too small: strides and pooling leave nothing "
            f"of fewer than {minimum_size}x{minimum_size}; use larger frames, or simple_cnn, "
            "which takes any size"
        )


def as_frames(x: jax.Array, dtype: Any, minimum_size: int = 1) -> jax.Array:
    """Checks a batch of frames, and turns the pixel values 0 ... 255 of integers into 0 ... 1.

    Args:
      x: `[B, H, W, C]`; integers are pixel values, floats are not scaled.
      dtype: the result of integers.
      minimum_size: the smallest H and W, in pixels.

    Raises:
      ValueError: if the frames have another rank or are too small.
    """
    check_frames(x, minimum_size)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(dtype) / 255
    return x
