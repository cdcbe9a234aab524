"""A convolution whose gradients are as fast inside `lax.scan` as outside, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

Pair = tuple[int, ...]  # of height and width
Padding = str | Sequence[tuple[int, int]]

CANONICAL = ("NHWC", "HWIO", "NHWC")
# The same convolution in two other layouts, for tangents alone: the transposition that lax makes of
# them, which reverse mode runs, is CANONICAL.
TRANSPOSES_CANONICALLY_IN_LHS = ("NHWC", "HWOI", "NHWC")
TRANSPOSES_CANONICALLY_IN_RHS = ("CHWN", "IHWO", "HWNC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with gradients that XLA's CPU backend runs fast in a loop.

    The CPU backend has a fast kernel for convolutions in the layout NHWC/HWIO/NHWC. The gradients
    of a convolution are convolutions in other layouts, which XLA rewrites, but only outside of
    loops and conditionals (`ConvCanonicalization` visits the entry computation alone): inside
    `lax.scan` they take 10 to 60 times longer (https://github.com/jax-ml/jax/issues/12868). Here
    the gradients come out in the fast layout, with explicit transpositions around them, at any
    order of `jax.jit`, `lax.scan`, `jax.vmap` and `jax.vjp`. The result is that of lax bit for bit,
    and the gradients are equal to rounding. Every derivative exists, but only reverse mode is fast:
    `jax.jvp` with respect to the kernel, and second derivatives, may take tens of times longer than
    with lax.

    This covers 2-D NHWC/HWIO/NHWC convolutions of floats of one dtype, of any strides, padding and
    kernel size and with dilated inputs (that is, transposed convolutions), without dilated kernels
    or groups. All others are passed to lax unchanged.

    Args:
      lhs: `[N, H, W, C]`.
      rhs: the kernel, `[h, w, C, O]`.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
      batch_group_count, precision, preferred_element_type, **options: those of lax.

    Returns:
      `[N, H', W', O]`.

    In flax: `flax.linen.Conv(..., conv_general_dilated=conv_general_dilated)`.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=CANONICAL).shape
    (1, 2, 2, 5)
    """
    covered = (
        lhs.ndim == rhs.ndim == 4
        and _layout(lhs, rhs, dimension_numbers) == _layout(lhs, rhs, CANONICAL)
        and all(d == 1 for d in rhs_dilation or ())
        and feature_group_count == batch_group_count == 1
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and preferred_element_type in (None, lhs.dtype)
        and all(value is None for value in options.values())
    )
    if covered:
        if not isinstance(padding, str):
            padding = tuple((int(low), int(high)) for low, high in padding)
        lhs_dilation = tuple(lhs_dilation or (1, 1))
        return _conv(lhs, rhs, tuple(window_strides), padding, lhs_dilation, precision)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )


# custom_jvp, not custom_vjp: jax.vmap over frames of a custom_vjp would compute one kernel gradient
# per frame, a grouped convolution, and sum them. A JVP rule is batched before it is transposed, so
# that the frames are folded into the batch, and one convolution gives the gradient of all of them.
@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def _conv(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Pair,
    padding: Padding,
    lhs_dilation: Pair,
    precision: Any,
) -> jax.Array:
    return lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        dimension_numbers=CANONICAL,
        precision=precision,
    )


# Symbolic zeros spare the convolution with a zero tangent: the first module of a network is not
# differentiated with respect to the frame.
@partial(_conv.defjvp, symbolic_zeros=True)
def _conv_jvp(
    strides: Pair,
    padding: Padding,
    lhs_dilation: Pair,
    precision: Any,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[Any, Any],
) -> tuple[jax.Array, jax.Array]:
    lhs, rhs = primals
    lhs_dot, rhs_dot = tangents
    conv = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        precision=precision,
    )
    out = _conv(lhs, rhs, strides, padding, lhs_dilation, precision)
    out_dot = []
    if not isinstance(lhs_dot, SymbolicZero):
        # Transposed: the cotangent NHWC, dilated by the stride, with the flipped kernel HWIO, whose
        # I are the channels of the output.
        kernel = rhs.transpose(0, 1, 3, 2)
        out_dot.append(conv(lhs_dot, kernel, dimension_numbers=TRANSPOSES_CANONICALLY_IN_LHS))
    if not isinstance(rhs_dot, SymbolicZero):
        if lhs.size and out.size and _cotangent_as_image(rhs, strides, lhs_dilation):
            out_dot.append(
                _tangent_with_cotangent_as_image(lhs, rhs_dot, padding, lhs_dilation, precision)
            )
        else:
            # Transposed: the input as "NHWC" = CHWN, with the cotangent as the kernel "HWIO" =
            # HWNC, dilated by the stride; the result "NHWC" is IHWO.
            images, kernel_dot = lhs.transpose(3, 1, 2, 0), rhs_dot.transpose(2, 0, 1, 3)
            hwnc = conv(images, kernel_dot, dimension_numbers=TRANSPOSES_CANONICALLY_IN_RHS)
            out_dot.append(hwnc.transpose(2, 0, 1, 3))
    return out, sum(out_dot[1:], start=out_dot[0]) if out_dot else jnp.zeros_like(out)


def _cotangent_as_image(rhs: jax.Array, strides: Pair, lhs_dilation: Pair) -> bool:
    """Which of two convolutions gives the gradient of a kernel faster, on the CPU.

    The gradient is the correlation of the input with the cotangent. XLA takes one of them as the
    image and copies its patches, once for every pixel of the kernel. The image should not be
    dilated: zeros are copied and multiplied like other pixels (tens of times slower in an
    auto-encoder). If none is dilated, it should have fewer channels; if both are, it is the input.
    """
    if strides == lhs_dilation == (1, 1):
        *_, channels, features = rhs.shape
        return features < channels
    return strides == (1, 1)


def _tangent_with_cotangent_as_image(
    lhs: jax.Array, rhs_dot: jax.Array, padding: Padding, lhs_dilation: Pair, precision: Any
) -> jax.Array:
    # Transposed: the cotangent as "NHWC" = OHWN, with the input as the kernel "HWIO" = HWNI,
    # dilated as it was; the result "NHWC" is OHWI. The flips turn the correlation that lax computes
    # into a convolution, whose two sides can change places.
    size, kernel = lhs.shape[1:3], rhs_dot.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel, (1, 1), padding)
    more = [(n - 1) * d + 1 - k for n, d, k in zip(size, lhs_dilation, kernel, strict=True)]
    ohwn = lax.conv_general_dilated(
        rhs_dot.transpose(3, 0, 1, 2)[:, ::-1, ::-1],
        lhs.transpose(1, 2, 0, 3)[::-1, ::-1],
        (1, 1),
        [(low + m, high + m) for (low, high), m in zip(padding, more, strict=True)],
        rhs_dilation=lhs_dilation,
        dimension_numbers=TRANSPOSES_CANONICALLY_IN_LHS,
        precision=precision,
    )
    return ohwn.transpose(3, 1, 2, 0)


def _layout(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> lax.ConvDimensionNumbers:
    return lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
