"""Different pytrees on different devices, as arrays that one program can shard.

A program under `jax.shard_map` is one program: every device holds arrays of the same shapes. The
modules of a network differ, so what a device holds of one kind (parameters, say) is flattened into
one vector per dtype, padded to the longest over the devices. Device n's pytree is taken out of the
vectors with offsets that are known when the program is compiled, inside the branch for device n.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sideways_jax.trees import PyTree, shape_of

Packed = dict[str, jax.Array]  # dtype name -> vector


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the pytrees of N devices lie in vectors.

    Attributes:
      trees: for every device, the shapes of its pytree.
      lengths: for every dtype, the length of the vector: what the largest device needs.
    """

    trees: tuple[PyTree, ...]
    lengths: dict[str, int]

    @classmethod
    def of(cls, trees: Sequence[PyTree]) -> Packing:
        """The packing of these pytrees, of arrays or their shapes, one for every device."""
        trees = tuple(shape_of(tree) for tree in trees)
        used = [_used(tree) for tree in trees]
        names = sorted({name for one in used for name in one})
        return cls(trees, {name: max(one.get(name, 0) for one in used) for name in names})

    def pack(self, device: int, tree: PyTree, padding: float = 0) -> Packed:
        """The vectors that hold `tree`, the pytree of this device."""
        parts: dict[str, list[jax.Array]] = {name: [] for name in self.lengths}
        for leaf in jax.tree.leaves(tree):
            parts[jnp.result_type(leaf).name].append(jnp.ravel(leaf))
        return {
            name: _joined(parts[name], length, name, padding)
            for name, length in self.lengths.items()
        }

    def unpack(self, device: int, packed: Packed) -> PyTree:
        """The pytree of this device, out of its vectors."""
        offsets = dict.fromkeys(self.lengths, 0)
        leaves, structure = jax.tree.flatten(self.trees[device])
        values = []
        for leaf in leaves:
            name, size = leaf.dtype.name, math.prod(leaf.shape)
            start = offsets[name]
            values.append(packed[name][start : start + size].reshape(leaf.shape))
            offsets[name] += size
        return jax.tree.unflatten(structure, values)

    def shapes(self) -> Packed:
        """Shapes and dtypes of the vectors."""
        return {n: jax.ShapeDtypeStruct((k,), jnp.dtype(n)) for n, k in self.lengths.items()}

    @property
    def bytes_held(self) -> int:
        """Bytes on every device, padding included."""
        return sum(jnp.dtype(name).itemsize * length for name, length in self.lengths.items())

    @property
    def bytes_used(self) -> tuple[int, ...]:
        """Bytes that each device has use for; the rest of `bytes_held` is padding."""
        return tuple(
            sum(jnp.dtype(name).itemsize * length for name, length in _used(tree).items())
            for tree in self.trees
        )


def _used(tree: PyTree) -> dict[str, int]:
    used: dict[str, int] = {}
    for leaf in jax.tree.leaves(tree):
        used[leaf.dtype.name] = used.get(leaf.dtype.name, 0) + math.prod(leaf.shape)
    return used


def _joined(parts: list[jax.Array], length: int, name: str, padding: float) -> jax.Array:
    missing = length - sum(part.size for part in parts)
    if missing:
        fill = padding if jnp.issubdtype(jnp.dtype(name), jnp.inexact) else 0
        parts = [*parts, jnp.full((missing,), fill, jnp.dtype(name))]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
