"""VGG-8, the larger network of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.layers import Logits, as_frames, conv, he_normal, max_pool
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen


class Block(NamedTuple):
    """A convolutional block, apart from its width."""

    kernel: int
    stride: int
    pool: bool


BLOCKS = (
    Block(kernel=7, stride=2, pool=True),
    Block(kernel=5, stride=2, pool=True),
    Block(kernel=3, stride=1, pool=False),
    Block(kernel=3, stride=1, pool=False),
    Block(kernel=3, stride=1, pool=True),
)
WIDTHS = (96, 256, 512, 512, 512)
HIDDEN = (4096, 2048)


def minimum_size(blocks: Sequence[Block] = BLOCKS) -> int:
    """The smallest height and width of a frame for which the blocks leave one pixel.

    >>> minimum_size()
    27
    """
    size = 1
    for block in reversed(blocks):
        size = (size * (2 if block.pool else 1) - 1) * block.stride + 1
    return size


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU, and maximum pooling in some."""

    width: int
    block: Block
    first: bool
    batch_norm_axis: str | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H', W', width]`."""
        kernel, stride, pool = self.block
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.first:
            x = as_frames(x, self.dtype or self.param_dtype, minimum_size())
        x = conv(self.width, kernel, stride, **types)(x)
        if self.dtype is not None:
            x = x.astype(self.param_dtype)  # Statistics in bfloat16 would be of little use.
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.batch_norm_axis,
            param_dtype=self.param_dtype,
            force_float32_reductions=False,  # They have the dtype of x, that of the parameters.
            name="norm",
        )(x)
        x = nn.relu(x)
        if self.dtype is not None:
            x = x.astype(self.dtype)
        return max_pool(x) if pool else x


class LinearReLU(nn.Module):
    """A linear layer of the flattened input, ReLU and dropout."""

    width: int
    dropout_rate: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, ...]` to `[B, width]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.width, use_bias=False, kernel_init=he_normal, name="linear", **types)(x)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))


def vgg8(
    num_classes: int,
    *,
    widths: Sequence[int] = WIDTHS,
    hidden: Sequence[int] = HIDDEN,
    dropout_rate: float = 0.9,
    batch_norm_axis: str | None = None,
    cut: Sequence[int] = (1,) * 8,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> network.Network:
    """VGG-8 (section 4.3): the RGB network of Simonyan and Zisserman (2014), batch-normalised.

    D = 8. The network is CNN-M-2048 of Chatfield et al. (2014, "Return of the devil in the
    details"), with batch normalisation between the convolution and the ReLU of every block instead
    of local response normalisation:

    ======  ========  ======  ======  ====  ==========================
    layer   channels  kernel  stride  pool
    ======  ========  ======  ======  ====  ==========================
    conv1         96       7       2     2  batch norm, ReLU
    conv2        256       5       2     2  batch norm, ReLU
    conv3        512       3       1        batch norm, ReLU
    conv4        512       3       1        batch norm, ReLU
    conv5        512       3       1     2  batch norm, ReLU
    full6       4096                        ReLU, dropout
    full7       2048                        ReLU, dropout
    logits   classes                        a bias, the only one
    ======  ========  ======  ======  ====  ==========================

    `[B, H, W, C]` becomes `[B, num_classes]`; frames of 112x112 pixels reach full6 as 3x3. Frames
    of integers are divided by 255. The statistics of batch normalisation are over the batch of one
    computation step; their running averages keep 0.9 of the old value. The paper does not say the
    padding: here it is SAME in convolutions, and pooling leaves out an odd last row or column.

    Args:
      num_classes: how many logits.
      widths: the channels of the five convolutions.
      hidden: the widths of the hidden linear layers; another number of them needs another `cut`.
      dropout_rate: the probability of dropping a unit of the hidden linear layers (0.9 in the
        paper, 0 for none).
      batch_norm_axis: an axis of the mesh, such as "data", over which training averages the
        statistics, which are then those of the whole batch; None for those of each replica's
        share. With a name the network trains only on a mesh with that axis.
      cut: how many consecutive layers each module takes; one by default.
      dtype: of the activations, such as `jnp.bfloat16`; by default that of the frames and
        parameters. The last layer always computes in `param_dtype`.
      param_dtype: of the parameters.

    Raises:
      ValueError: if there are not five widths, if the dropout rate is not in [0, 1), or if the
        sizes in `cut` do not add up to the number of layers. When the network is initialised or
        applied: if frames are smaller than 27x27 pixels, of which pooling would leave nothing.

    >>> vgg8(num_classes=51).depth
    8
    """
    if len(widths) != len(BLOCKS):
        raise ValueError(
            f"vgg8 has {len(BLOCKS)} convolutions, so widths must be {len(BLOCKS)} numbers; got "
            f"{len(widths)}, {tuple(widths)}"
        )
    if not 0 <= dropout_rate < 1:
        raise ValueError(
            f"dropout_rate={dropout_rate} is the probability of dropping a unit, it must be at "
            "least 0 (no dropout) and below 1"
        )
    types = {"dtype": dtype, "param_dtype": param_dtype}
    layers: list[nn.Module] = [
        ConvBlock(width, block, n == 0, batch_norm_axis, **types)
        for n, (width, block) in enumerate(zip(widths, BLOCKS, strict=True))
    ]
    layers += [LinearReLU(width, dropout_rate, **types) for width in hidden]
    layers.append(Logits(num_classes, **types))
    return network.cut([from_linen(layer) for layer in layers], cut)
