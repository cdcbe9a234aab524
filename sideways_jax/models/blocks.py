"""What the larger networks share: convolution with batch normalisation, pooling, pixels."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.layers import as_frames, conv


class Pixels(NamedTuple):
    """The mean and the standard deviation of the colours, where 255 is 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Shared(NamedTuple):
    """What all layers of a network have in common.

    Attributes:
      dtype: of the activations; None for that of the frames and parameters.
      param_dtype: of the parameters.
      batch_norm_axis: an axis of the mesh over which training averages the statistics, or None.
      epsilon: what normalisation adds to a variance.
    """

    dtype: Any = None
    param_dtype: Any = jnp.float32
    batch_norm_axis: str | None = None
    epsilon: float = 1e-5

    @property
    def types(self) -> dict[str, Any]:
        """The arguments of a Linen layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


def standardised(x: jax.Array, pixels: Pixels, shared: Shared, minimum_size: int = 1) -> jax.Array:
    """Frames `[B, H, W, 3]` as the networks of images take them; floats are left as they are.

    Integers 0 ... 255 become 0 ... 1, minus the mean of their colour, divided by its deviation.

    Raises:
      ValueError: for frames of another rank, that are too small, or of another number of colours.
    """
    of_integers = jnp.issubdtype(x.dtype, jnp.integer)
    x = as_frames(x, shared.dtype or shared.param_dtype, minimum_size)
    if not of_integers:
        return x
    if x.shape[-1] != len(pixels.mean):
        raise ValueError(
            f"frames of {x.shape[-1]} colours: there are means of {len(pixels.mean)}; give frames "
            f"[B, H, W, {len(pixels.mean)}], or floats, which are not scaled"
        )
    mean, std = (jnp.asarray(one, x.dtype)[None, None, None] for one in pixels)
    return (x - mean) / std


def batch_norm(
    x: jax.Array, shared: Shared, *, train: bool, relu: bool = True, name: str = "norm"
) -> jax.Array:
    """Batch normalisation, and a ReLU if wanted; inside a compact method.

    It computes in `param_dtype` also when `dtype` is given: statistics in bfloat16 are of little
    use. Running averages keep 0.9 of the old value.
    """
    if shared.dtype is not None:
        x = x.astype(shared.param_dtype)
    x = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=shared.epsilon,
        axis_name=shared.batch_norm_axis,
        param_dtype=shared.param_dtype,
        force_float32_reductions=False,  # They have the dtype of x, that of the parameters.
        name=name,
    )(x)
    x = nn.relu(x) if relu else x
    return x if shared.dtype is None else x.astype(shared.dtype)


class ConvNorm(nn.Module):
    """A convolution, batch normalisation, and a ReLU.

    Padding is `kernel // 2` pixels on every side, as in PyTorch's networks: with a stride, SAME
    would pad differently.
    """

    width: int
    kernel: int
    stride: int = 1
    relu: bool = True
    shared: Shared = Shared()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), width]`."""
        x = padded_conv(self.width, self.kernel, self.stride, self.shared)(x)
        return batch_norm(x, self.shared, train=train, relu=self.relu)


def padded_conv(
    width: int, kernel: int, stride: int, shared: Shared, name: str = "conv"
) -> nn.Conv:
    """A convolution without bias, with a padding of `kernel // 2` pixels on every side."""
    pad = (kernel // 2, kernel // 2)
    return conv(width, kernel, stride, padding=(pad, pad), name=name, **shared.types)


def max_pool(x: jax.Array, window: int, stride: int, pad: int | None = None) -> jax.Array:
    """The maximum of `window` x `window` pixels, at every `stride`-th pixel.

    The same as that of PyTorch, except that equally large pixels share the gradient. It takes
    maxima of slices, since the gradient of `flax.linen.max_pool` is slow on a CPU.

    Args:
      x: `[B, H, W, C]`.
      window, stride: in pixels.
      pad: pixels around the frame that are never the maximum; None for `ceil_mode`: none in front,
        and at the end as many as the last window lacks.

    >>> max_pool(jnp.arange(25.0).reshape(1, 5, 5, 1), 3, 2, 1)[0, ..., 0]
    Array([[ 6.,  8.,  9.],
           [16., 18., 19.],
           [21., 23., 24.]], dtype=float32)
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 3, 2)[0, ..., 0]
    Array([[10., 11.],
           [14., 15.]], dtype=float32)
    """
    for axis in (1, 2):
        size = x.shape[axis]
        if pad is None:
            count = max(-(-(size - window) // stride), 0) + 1
            before, after = 0, max((count - 1) * stride + window - size, 0)
        else:
            count = (size + 2 * pad - window) // stride + 1
            before = after = pad
        widths = [(before, after) if n == axis else (0, 0) for n in range(4)]
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        x = functools.reduce(
            jnp.maximum,
            [
                jax.lax.slice_in_dim(padded, k, k + (count - 1) * stride + 1, stride, axis)
                for k in range(window)
            ],
        )
    return x


def average_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """The mean of `height` x `width` pixels; rows and columns that are left over are left out.

    >>> average_pool(jnp.arange(15.0).reshape(1, 3, 5, 1), 3, 2)[0, ..., 0]
    Array([[5.5, 7.5]], dtype=float32)
    """
    batch, h, w, channels = x.shape
    rows, columns = h // height, w // width
    x = x[:, : rows * height, : columns * width]
    return x.reshape(batch, rows, height, columns, width, channels).mean((2, 4))
