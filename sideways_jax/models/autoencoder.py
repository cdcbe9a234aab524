"""The auto-encoder of the paper's second task (section 4.1): Simple-CNN, and its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.conv import CANONICAL, conv_general_dilated
from sideways_jax.models.layers import check_frames, he_normal, lecun_normal
from sideways_jax.models.merging import Concatenate
from sideways_jax.models.simple_cnn import WIDTHS, ConvReLU
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen
from sideways_jax.network.wiring import shortcut_pairs
from sideways_jax.tools.names import check_name

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}
PIXEL_RANGE = (0.0, 1.0)


def pixels(x: jax.Array, pixel_range: tuple[float, float], dtype: Any = jnp.float32) -> jax.Array:
    """Frames in the range of the network: integers 0 ... 255 become floats in `pixel_range`.

    >>> pixels(jnp.array([0, 255], jnp.uint8), (-1.0, 1.0))
    Array([-1.,  1.], dtype=float32)
    """
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return x
    low, high = pixel_range
    return x.astype(dtype) * ((high - low) / 255) + low


def squared_error(pixel_range: tuple[float, float] = PIXEL_RANGE) -> Callable:
    """The loss of section 4.1: `loss(output, frame)`, the mean over the batch, pixels and colours.

    In units of black = 0 and white = 1, for any range. `frame` is `[B, H, W, 3]`, integers or
    floats in `pixel_range`.
    """
    _check_range(pixel_range)
    scale = 1 / (pixel_range[1] - pixel_range[0])

    def loss(output: jax.Array, frame: jax.Array) -> jax.Array:
        if output.shape != frame.shape:
            raise ValueError(f"an output {output.shape} cannot be compared with {frame.shape}")
        return jnp.mean(jnp.square((output - pixels(frame, pixel_range, output.dtype)) * scale))

    return loss


def _check_range(pixel_range: tuple[float, float]) -> None:
    low, high = pixel_range
    if not low < high:
        raise ValueError(f"pixel_range={pixel_range} must be two numbers, the smaller one first")


class Encoded(nn.Module):
    """The first block: frames become numbers in `pixel_range`, then as in Simple-CNN."""

    block: dict
    pixel_range: tuple[float, float]
    multiple: int  # height and width must be multiples of it

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, 3]` to `[B, H / 2, W / 2, width]`."""
        check_frames(x)
        if any(size % self.multiple for size in x.shape[1:3]):
            raise ValueError(
                f"frames of {x.shape[1]}x{x.shape[2]} pixels do not come back at their size: the "
                f"strides need multiples of {self.multiple}; crop or resize them"
            )
        dtype = self.block["dtype"] or self.block["param_dtype"]
        return ConvReLU(**self.block, first=False)(pixels(x, self.pixel_range, dtype))


class Normalised(nn.Module):
    """A block whose output is normalised over the channels of each pixel, without parameters."""

    block: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to the same as `block`."""
        x = self.block(x)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-3)


class TransposedConv(nn.Module):
    """A 3x3 transposed convolution with SAME padding, whose gradients are fast inside loops."""

    width: int
    stride: int
    bias: bool
    kernel_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, H * stride, W * stride, width]`."""
        shape = (3, 3, x.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        # The padding of lax.conv_transpose: 3 + stride - 2 pixels, the larger half in front.
        before = (self.stride + 2) // 2
        pad = (before, self.stride + 1 - before)
        x = conv_general_dilated(
            x, kernel, (1, 1), (pad, pad), lhs_dilation=(self.stride,) * 2,
            dimension_numbers=CANONICAL,
        )  # fmt: skip
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
            x = x + bias.astype(x.dtype)[None, None, None]
        return x


class Decoder(nn.Module):
    """Five transposed convolutions in one module, the mirror image of the encoder."""

    widths: Sequence[int]
    strides: Sequence[int]
    output_activation: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, C]` to `[B, H, W, widths[-1]]`."""
        last = len(self.widths) - 1
        for n, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            x = TransposedConv(
                width, stride, n == last, lecun_normal if n == last else he_normal,
                self.dtype, self.param_dtype, name=f"deconv{n + 1}",
            )(x)  # fmt: skip
            if n < last:
                x = nn.relu(x)
        return ACTIVATIONS[self.output_activation](x.astype(self.param_dtype))


def autoencoder(
    *,
    widths: Sequence[int] = WIDTHS,
    channels: int = 3,
    output_activation: str = "none",
    pixel_range: tuple[float, float] = PIXEL_RANGE,
    normalise: bool = False,
    shortcuts: Sequence[tuple[int, int]] = (),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """The auto-encoder of section 4.1: five convolutions, each a module, and one decoder. D = 6, in
    general one more than there are widths.

    The encoder is Simple-CNN without its last layer. The decoder has transposed convolutions of the
    same strides in reverse order with 128, 64, 64, 32 and 3 channels, ReLU between them, and a bias
    in the last. `[B, H, W, 3]` comes back as `[B, H, W, 3]`; H and W are multiples of 8 (2 to
    the number of strided blocks).

    The paper does not say how pixels are scaled or which activation the output has. Here pixels are
    0 to 1 and the output is linear: it does not saturate, and its slope vanishes nowhere.

    Args:
      widths: the channels of the encoder.
      channels: of the output.
      output_activation: "none", "sigmoid" (for a range of 0 to 1) or "tanh" (for -1 to 1).
      pixel_range: the values of 0 and 255; floats are not scaled. Use the same for
        `squared_error`.
      normalise: whether the output of every encoder block is divided by its root mean square over
        the channels; not in the paper.
      shortcuts: those of `Network`; a module concatenates what it hears (`Concatenate`).
      dtype: of the activations; the output is in `param_dtype`.
      param_dtype: of the parameters.

    Raises:
      ValueError: for an unknown activation, and at `init` for frames whose size is no multiple.

    >>> autoencoder().depth
    6
    """
    check_name("output_activation", output_activation, ACTIVATIONS)
    _check_range(pixel_range)
    if not widths:
        raise ValueError("widths=(): an auto-encoder needs at least one block")
    types = {"dtype": dtype, "param_dtype": param_dtype}
    strides = [2 if n % 2 == 0 else 1 for n in range(len(widths))]
    blocks: list[nn.Module] = [
        Encoded(
            {"width": widths[0], "stride": strides[0], **types},
            (pixel_range[0], pixel_range[1]),
            2 ** strides.count(2),
        )
    ]
    blocks += [
        ConvReLU(width, stride, first=False, **types)
        for width, stride in zip(widths[1:], strides[1:], strict=True)
    ]
    if normalise:
        blocks = [Normalised(block) for block in blocks]
    decoder = Decoder(
        (*widths[-2::-1], channels), strides[::-1], output_activation=output_activation, **types
    )
    layers: list[nn.Module] = [*blocks, decoder]
    for i in {receiver for _, receiver in shortcut_pairs(shortcuts)} & set(range(len(layers))):
        layers[i] = nn.Sequential([Concatenate(dtype or param_dtype), layers[i]])
    return network.Network([from_linen(layer) for layer in layers], shortcuts)
