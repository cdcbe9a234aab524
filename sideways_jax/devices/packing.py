"""Different pytrees on different devices, as arrays that one program can shard.

`jax.shard_map` runs one program: every device holds arrays of the same shapes. The modules of a
network differ, so the leaves that a device holds of one kind (parameters, for example) lie in
vectors: its largest leaf of a dtype in the first, the next in the second, and so on. A vector is as
long as its largest leaf over all devices; a leaf of that length is not copied. The place of a leaf
is known at compile time, inside the branch for device n. Keys of random numbers (`jax.random.key`)
lie as their data, in vectors of their own, named "key<...>".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sideways_jax.tools.keys import data_of, is_key, wrap_keys
from sideways_jax.tools.trees import PyTree, shape_of

Packed = dict[str, jax.Array]  # "dtype number" -> vector


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the pytrees of N devices lie in vectors.

    Attributes:
      trees: for every device, the shapes of its pytree.
      lengths: the length of every vector, that of its largest leaf over all devices.
    """

    trees: tuple[PyTree, ...]
    lengths: dict[str, int]

    @classmethod
    def of(cls, trees: Sequence[PyTree]) -> Packing:
        """The packing of these pytrees, of arrays or their shapes, one for every device."""
        trees = tuple(shape_of(tree) for tree in trees)
        lengths: dict[str, int] = {}
        for tree in trees:
            leaves = jax.tree.leaves(tree)
            for name, leaf in zip(_places(leaves), leaves, strict=True):
                lengths[name] = max(lengths.get(name, 0), data_of(leaf).size)
        # No vectors without elements: jaxlib 0.11.2 ends in a segmentation fault when it compiles a
        # program under `shard_map` that has one.
        return cls(trees, {name: n for name, n in sorted(lengths.items()) if n})

    @functools.cached_property
    def signature(self) -> tuple[str, ...]:
        """The structure, shapes and dtypes of every device: equal for packings of equal trees."""
        return tuple(
            f"{jax.tree.structure(tree)} {[(leaf.shape, str(leaf.dtype)) for leaf in leaves]}"
            for tree in self.trees
            for leaves in [jax.tree.leaves(tree)]
        )

    def pack(self, device: int, tree: PyTree, padding: float = 0) -> Packed:
        """The pytree of this device as vectors."""
        leaves = dict(zip(self._places(device), jax.tree.leaves(tree), strict=True))
        return {
            name: _padded(leaves.get(name), vector, padding)
            for name, vector in self.shapes().items()
        }

    def unpack(self, device: int, packed: Packed) -> PyTree:
        """The pytree of this device from its vectors."""
        leaves, structure = jax.tree.flatten(self.trees[device])
        values = []
        for name, leaf in zip(self._places(device), leaves, strict=True):
            size = data_of(leaf).size
            value = packed[name][:size] if size else jnp.zeros((0,), data_of(leaf).dtype)
            values.append(wrap_keys(value, leaf) if is_key(leaf) else value.reshape(leaf.shape))
        return jax.tree.unflatten(structure, values)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the vectors."""
        return {
            name: jax.ShapeDtypeStruct((length,), _dtype_of_vector(name))
            for name, length in self.lengths.items()
        }

    @property
    def bytes_held(self) -> int:
        """Bytes on every device, padding included."""
        return sum(math.prod(v.shape) * v.dtype.itemsize for v in self.shapes().values())

    @property
    def bytes_used(self) -> tuple[int, ...]:
        """Bytes that each device uses; the rest of `bytes_held` is padding."""
        return tuple(
            sum(data_of(leaf).size * data_of(leaf).dtype.itemsize for leaf in jax.tree.leaves(tree))
            for tree in self.trees
        )

    def _places(self, device: int) -> list[str]:
        return _places(jax.tree.leaves(self.trees[device]))


def filled(packing: Packing, value: float) -> Packed:
    """The vectors of a packing, with one value everywhere; integers and keys are zero."""
    return {
        name: jnp.full(v.shape, value if jnp.issubdtype(v.dtype, jnp.inexact) else 0, v.dtype)
        for name, v in packing.shapes().items()
    }


def _dtype_of_vector(name: str) -> jnp.dtype:
    dtype = name.rsplit(" ", 1)[0]
    return jnp.dtype("uint32" if dtype.startswith("key<") else dtype)


def _places(leaves: Sequence[jax.ShapeDtypeStruct]) -> list[str]:
    """The name of the vector of every leaf: by dtype, and then by size, the largest first.

    A leaf without elements takes no room: it gets the name of the next vector.
    """
    names = [""] * len(leaves)
    taken: Counter[str] = Counter()
    sizes = [data_of(leaf).size for leaf in leaves]
    for k in sorted(range(len(leaves)), key=lambda k: -sizes[k]):
        dtype = leaves[k].dtype.name
        names[k] = f"{dtype} {taken[dtype]:03d}"
        taken[dtype] += sizes[k] > 0
    return names


def _padded(leaf: jax.Array | None, vector: jax.ShapeDtypeStruct, padding: float) -> jax.Array:
    inexact = jnp.issubdtype(vector.dtype, jnp.inexact)
    fill = jnp.asarray(padding if inexact else 0, vector.dtype)
    if leaf is None:
        return jnp.full(vector.shape, fill)
    flat = jnp.ravel(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    missing = vector.shape[0] - flat.size
    return jnp.pad(flat, (0, missing), constant_values=fill) if missing else flat
