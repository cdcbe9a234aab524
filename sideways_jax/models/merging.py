"""What a module makes of several inputs: layers for the receivers of shortcuts.

A receiver hears a tuple, what the module below sent and then its shortcuts (`Network`). Each of
these layers makes one array of it, for the layers behind it in the same module:

    from_linen(nn.Sequential([models.Concatenate(), nn.Conv(32, (3, 3)), nn.relu]))

A shortcut from further below has more pixels. It is averaged down to the height and width of the
main path, which have to divide its own. An array that is no tuple goes through as it is, so that
modules with and without shortcuts can be made alike. Integers, the pixels of a frame, become 0 to
1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.blocks import average_pool
from sideways_jax.models.layers import lecun_normal


class Concatenate(nn.Module):
    """The channels of all inputs side by side; no parameters.

    Attributes:
      dtype: of the result where all inputs are integers; otherwise it is that of the main path.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, heard: jax.Array | tuple) -> jax.Array:
        """`[B, ..., C]`, and shortcuts `[B, ..., C']`, to `[B, ..., C + C' + ...]`."""
        main, shortcuts = at_one_size(heard, self.dtype)
        return jnp.concatenate([main, *shortcuts], axis=-1)


class Add(nn.Module):
    """The sum of all inputs; a shortcut with other channels goes through a 1x1 convolution.

    Attributes:
      dtype: as for `Concatenate`.
      param_dtype: of the 1x1 convolutions.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, heard: jax.Array | tuple) -> jax.Array:
        """`[B, ..., C]`, and shortcuts `[B, ..., C']`, to `[B, ..., C]`."""
        main, shortcuts = at_one_size(heard, self.dtype)
        total = main
        for n, shortcut in enumerate(shortcuts):
            shortcut = _of_width(self, main, n, shortcut)
            total = total + shortcut
        return total


class GatedAdd(nn.Module):
    """The main path, and as much of every shortcut as a gate lets through.

    The gate is a number between 0 and 1 for every pixel and channel, the sigmoid of a 1x1
    convolution of the main path and the shortcut side by side. Shortcuts with other channels go
    through a 1x1 convolution of their own, as in `Add`.

    Attributes:
      dtype: as for `Concatenate`.
      param_dtype: of the 1x1 convolutions.
      bias: of the gates at the start: 0 lets one half through, less lets less through.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    bias: float = 0.0

    @nn.compact
    def __call__(self, heard: jax.Array | tuple) -> jax.Array:
        """`[B, ..., C]`, and shortcuts `[B, ..., C']`, to `[B, ..., C]`."""
        main, shortcuts = at_one_size(heard, self.dtype)
        total = main
        for n, shortcut in enumerate(shortcuts):
            shortcut = _of_width(self, main, n, shortcut)
            both = jnp.concatenate([main, shortcut], axis=-1)
            opening = _mixed(self, main, f"gate{n}", nn.initializers.constant(self.bias))
            total = total + nn.sigmoid(opening(both)) * shortcut
        return total


def at_one_size(
    heard: jax.Array | tuple, dtype: Any = jnp.float32
) -> tuple[jax.Array, list[jax.Array]]:
    """The main path, and its shortcuts, averaged down to its height and width.

    Args:
      heard: an array, or a tuple of arrays, the main path first: `[B, H, W, C]`, or any shapes that
        are the same but for the last axis.
      dtype: of the main path where it is an integer; the shortcuts get that of the main path.

    Raises:
      ValueError: for a shortcut that cannot be brought to the shape of the main path.

    >>> main, [shortcut] = at_one_size((jnp.zeros((1, 2, 3, 8)), jnp.zeros((1, 4, 9, 3))))
    >>> shortcut.shape
    (1, 2, 3, 3)
    """
    main, *shortcuts = heard if isinstance(heard, tuple) else (heard,)
    main = _floating(main, dtype)
    return main, [_like(main, _floating(one, main.dtype)) for one in shortcuts]


def _floating(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(dtype) / 255 if jnp.issubdtype(x.dtype, jnp.integer) else x


def _like(main: jax.Array, shortcut: jax.Array) -> jax.Array:
    there, here = shortcut.shape, main.shape
    if there[:-1] != here[:-1]:
        pools = len(there) == len(here) == 4 and there[0] == here[0]
        if not pools or any(a % b for a, b in zip(there[1:3], here[1:3], strict=True)):
            raise ValueError(
                f"a shortcut {list(there)} does not merge with the main path {list(here)}: its "
                "height and width have to be multiples of those of the main path, and all else but "
                "the channels the same. Take frames of another size, such as a power of two, "
                "another source or receiver of the shortcut, or merge them in a layer of your own"
            )
        shortcut = average_pool(shortcut, there[1] // here[1], there[2] // here[2])
    return shortcut.astype(main.dtype)


def _of_width(layer: Add | GatedAdd, main: jax.Array, n: int, shortcut: jax.Array) -> jax.Array:
    """The n-th shortcut, with as many channels as the main path."""
    if shortcut.shape[-1] == main.shape[-1]:
        return shortcut
    return _mixed(layer, main, f"shortcut{n}")(shortcut)


def _mixed(
    layer: Add | GatedAdd,
    main: jax.Array,
    name: str,
    bias: nn.initializers.Initializer | None = None,
) -> nn.Dense:
    """A 1x1 convolution to the channels of the main path, with a bias if that is given."""
    return nn.Dense(
        main.shape[-1],
        use_bias=bias is not None,
        bias_init=bias or nn.initializers.zeros,
        kernel_init=lecun_normal,
        dtype=main.dtype,
        param_dtype=layer.param_dtype,
        name=name,
    )
