"""ViT-S/16, a vision transformer: equal blocks, so that modules cost the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sideways_jax.models.blocks import CENTRED, Shared, standardised
from sideways_jax.models.conv import conv_general_dilated
from sideways_jax.models.layers import lecun_normal
from sideways_jax.models.pretrained import Layout
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen

MLP = 4  # the inner width of a block, in units of its own


class Embedding(nn.Module):
    """Patches of the frame as tokens, behind a token of their class, with their positions."""

    width: int
    patch: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, 3]` to `[B, 1 + H W / patch^2, width]`."""
        x = standardised(x, CENTRED, self.shared)
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"frames of {height}x{width} pixels do not divide into patches of "
                f"{self.patch}x{self.patch}: crop or resize them to multiples of {self.patch}"
            )
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            self.patch,
            padding="VALID",
            kernel_init=lecun_normal,
            conv_general_dilated=conv_general_dilated,
            name="patches",
            **self.shared.types,
        )(x)
        x = x.reshape(x.shape[0], -1, self.width)
        types = self.shared.param_dtype
        first = self.param("first", nn.initializers.zeros, (1, 1, self.width), types)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (1, x.shape[1] + 1, self.width), types
        )
        first = jnp.broadcast_to(first.astype(x.dtype), (x.shape[0], 1, self.width))
        return jnp.concatenate([first, x], axis=1) + positions.astype(x.dtype)


class Block(nn.Module):
    """Attention, and a layer of its own for every token; both add to what they hear."""

    heads: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, N, width]` to the same."""
        width = x.shape[-1]

        def dense(features: int, name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(
                features, kernel_init=lecun_normal, name=name, **self.shared.types
            )(x)  # fmt: skip

        y = layer_norm(x, self.shared, "norm_before")
        query, key, value = (
            dense(width, name, y).reshape(*y.shape[:2], self.heads, -1)
            for name in ("query", "key", "value")
        )
        y = attention(query, key, value, self.shared.param_dtype).reshape(y.shape)
        x = x + dense(width, "out", y)
        y = dense(MLP * width, "mlp_in", layer_norm(x, self.shared, "norm_after"))
        return x + dense(width, "mlp_out", nn.gelu(y, approximate=False))


class Head(nn.Module):
    """The linear layer of the logits, of the first token."""

    num_classes: int
    shared: Shared

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, N, width]` to `[B, classes]`; it computes in `param_dtype`."""
        shared = self.shared
        x = layer_norm(x, shared, "norm")[:, 0]
        dtype = None if shared.dtype is None else shared.param_dtype
        return nn.Dense(
            self.num_classes, kernel_init=lecun_normal, dtype=dtype,
            param_dtype=shared.param_dtype, name="linear",
        )(x)  # fmt: skip


def layer_norm(x: jax.Array, shared: Shared, name: str) -> jax.Array:
    """Normalisation over the channels of every token, in `param_dtype`; inside a compact method."""
    dtype = x.dtype
    if shared.dtype is not None:
        x = x.astype(shared.param_dtype)
    x = nn.LayerNorm(
        epsilon=shared.epsilon,
        param_dtype=shared.param_dtype,
        use_fast_variance=False,
        force_float32_reductions=False,
        name=name,
    )(x)
    return x.astype(dtype)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, dtype: Any) -> jax.Array:
    """`softmax(Q K^T / sqrt(C)) V` of `[B, N, heads, C]`, with the softmax in `dtype`."""
    query = query * query.shape[-1] ** -0.5
    weights = jnp.einsum("bqhc,bkhc->bhqk", query, key).astype(dtype)
    weights = nn.softmax(weights).astype(value.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, value)


def vit_s16(
    num_classes: int,
    *,
    width: int = 384,
    heads: int = 6,
    blocks: int = 12,
    patch: int = 16,
    cut: Sequence[int] = (3, 2, 2, 2, 2, 3),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    epsilon: float = 1e-12,
) -> network.Network:
    """ViT-S/16 (Dosovitskiy et al., ICLR 2021): patches, twelve equal blocks, a head; 14 layers.

    `[B, H, W, 3]` becomes `[B, num_classes]`, where H and W are multiples of 16: 197 tokens for
    frames of 224x224 pixels. The positions are learned for the size of the frames. Frames of
    integers are divided by 255 and standardised to -1 ... 1.

    Args:
      num_classes: how many logits.
      width: the channels of a token.
      heads: of the attention, which divide the channels.
      blocks: how many; another number needs another `cut`.
      patch: the height and width of a patch, pixels.
      cut: how many consecutive layers each module takes; D = 6 by default.
      dtype: of the activations, such as `jnp.bfloat16`; by default that of the frames and
        parameters. Normalisation, softmax and the last layer always compute in `param_dtype`.
      param_dtype: of the parameters.
      epsilon: what normalisation adds to a variance; 1e-12 in Hugging Face's files.

    Raises:
      ValueError: if the heads do not divide the channels, or if the sizes in `cut` do not add up to
        the number of layers. When the network is initialised or applied: if patches do not divide
        the frames.

    >>> vit_s16(num_classes=51).depth
    6
    """
    if width % heads:
        raise ValueError(f"width={width} channels do not divide into heads={heads}: give a divisor")
    shared = Shared(dtype, param_dtype, epsilon=epsilon)
    layers: list[nn.Module] = [Embedding(width, patch, shared)]
    layers += [Block(heads, shared) for _ in range(blocks)]
    layers.append(Head(num_classes, shared))
    return network.cut([from_linen(layer) for layer in layers], cut)


def layout(num_layers: int) -> Layout:
    """Where a file of the library `transformers` has the weights (`google/vit-base-patch16-224`).

    Args:
      num_layers: those of `vit_s16`, two more than blocks.
    """
    blocks = [f"vit.encoder.layer.{n}" for n in range(num_layers - 2)]
    return Layout(
        base="vit",
        layers=("vit.embeddings", *blocks, ""),
        names={
            "patches": "patch_embeddings.projection",
            "first": "cls_token",
            "positions": "position_embeddings",
            "norm_before": "layernorm_before",
            "query": "attention.attention.query",
            "key": "attention.attention.key",
            "value": "attention.attention.value",
            "out": "attention.output.dense",
            "norm_after": "layernorm_after",
            "mlp_in": "intermediate.dense",
            "mlp_out": "output.dense",
            "norm": "vit.layernorm",
            "linear": "classifier",
        },
        ignored=("vit.pooler.dense.weight", "vit.pooler.dense.bias"),
    )
