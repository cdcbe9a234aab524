"""Different pytrees on different devices, as arrays that one program can shard.

`jax.shard_map` runs one program: every device holds arrays of the same shapes. The modules of a
network differ, so the leaves that a device holds of one kind (parameters, for example) lie in
slots, one leaf in each. A slot is as large as the largest leaf that lies there on any device; a
leaf of that size is not copied. The place of a leaf is known at compile time, inside the branch for
device n.

What is sent lies in vectors. What stays (parameters, sums of gradients, the optimizer's state) lies
in matrices `[rows, last axis]`, in their upper left corner: to make a matrix of a vector, a TPU
moves every number. Keys of random numbers (`jax.random.key`) lie as their data, in vectors of their
own, named "key<...>".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from sideways_jax.tools.keys import data_of, is_key, wrap_keys
from sideways_jax.tools.trees import PyTree, shape_of, wide

Packed = dict[str, jax.Array]  # by name of the slot, "dtype number" or "dtype matrix number"


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the pytrees of N devices lie in slots.

    Attributes:
      trees: for every device, the shapes of its pytree.
      slots: by name, the shape that every device has.
      places: for every device, the slot of each leaf; "" for a leaf without elements.
    """

    trees: tuple[PyTree, ...]
    slots: dict[str, jax.ShapeDtypeStruct]
    places: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, trees: Sequence[PyTree], *, matrices: bool = False) -> Packing:
        """The packing of these pytrees, of arrays or their shapes, one for every device.

        Args:
          trees: for every device.
          matrices: whether leaves with several axes lie in matrices, or in vectors like all others.
        """
        trees = tuple(shape_of(tree) for tree in trees)
        return cls(trees, *_placed(trees, matrices=matrices))

    @functools.cached_property
    def signature(self) -> tuple[str, ...]:
        """The structure, shapes and dtypes of every device: equal for packings of equal trees."""
        return tuple(
            f"{jax.tree.structure(tree)} {[(leaf.shape, str(leaf.dtype)) for leaf in leaves]}"
            for tree in self.trees
            for leaves in [jax.tree.leaves(tree)]
        )

    def wide(self) -> Packing:
        """For sums of such leaves, in the same places: every dtype is `trees.wide`."""

        def widened(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, wide(leaf.dtype))

        trees, slots = jax.tree.map(widened, (self.trees, self.slots))
        return Packing(trees, slots, self.places)

    def pack(self, device: int, tree: PyTree, padding: float = 0) -> Packed:
        """The pytree of this device in slots."""
        leaves = dict(self._views(device, tree))
        return {name: _padded(leaves.get(name), v, padding) for name, v in self.slots.items()}

    def put(self, device: int, packed: Packed, tree: PyTree) -> Packed:
        """The slots with this pytree in the place of the one that was there; the rest stays."""
        return packed | {name: _put(packed[name], x) for name, x in self._views(device, tree)}

    def plus(self, device: int, packed: Packed | None, tree: PyTree) -> Packed:
        """The slots with this pytree added to the one that is there, in the dtype of the slots.

        Without slots the pytree alone, to be added elsewhere.
        """
        if packed is None:
            return self.pack(device, tree)
        added = {}
        for name, x in self._views(device, tree):
            if x.ndim > 1:  # Otherwise sums may lie as the product that gives `x` likes it best.
                x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
            added[name] = _put(packed[name], _corner(packed[name], x.shape) + x)
        return packed | added

    def unpack(self, device: int, packed: Packed) -> PyTree:
        """The pytree of this device from its slots."""
        leaves, structure = jax.tree.flatten(self.trees[device])
        values = []
        for name, leaf in zip(self.places[device], leaves, strict=True):
            data = data_of(leaf)
            if not name:
                value = jnp.zeros(data.shape, data.dtype)
            else:
                value = _corner(packed[name], _shape_in(data, len(self.slots[name].shape)))
            values.append(wrap_keys(value, leaf) if is_key(leaf) else value.reshape(leaf.shape))
        return jax.tree.unflatten(structure, values)

    @property
    def is_even(self) -> bool:
        """Whether every device has the same, in the same places."""
        return len({*zip(self.signature, self.places, strict=True)}) == 1

    @property
    def bytes_held(self) -> int:
        """Bytes on every device, padding included."""
        return sum(math.prod(v.shape) * v.dtype.itemsize for v in self.slots.values())

    @property
    def bytes_used(self) -> tuple[int, ...]:
        """Bytes that each device uses; the rest of `bytes_held` is padding."""
        return tuple(
            sum(data_of(leaf).size * data_of(leaf).dtype.itemsize for leaf in jax.tree.leaves(tree))
            for tree in self.trees
        )

    def _views(self, device: int, tree: PyTree) -> Iterator[tuple[str, jax.Array]]:
        """The leaves that have elements, as they lie in their slots."""
        for name, leaf in zip(self.places[device], jax.tree.leaves(tree), strict=True):
            if name:
                slot, data = self.slots[name], jax.random.key_data(leaf) if is_key(leaf) else leaf
                yield name, data.reshape(_shape_in(data, len(slot.shape))).astype(slot.dtype)


def filled(packing: Packing, value: float) -> Packed:
    """The slots of a packing, with one value everywhere; integers and keys are zero."""
    return {
        name: jnp.full(v.shape, value if jnp.issubdtype(v.dtype, jnp.inexact) else 0, v.dtype)
        for name, v in packing.slots.items()
    }


def _placed(
    trees: Sequence[PyTree], *, matrices: bool
) -> tuple[dict[str, jax.ShapeDtypeStruct], tuple[tuple[str, ...], ...]]:
    """The slots, and the place of every leaf of every device.

    The largest leaves come first. Each lies in the slot that has to grow least, or in a new one.
    """
    slots: dict[str, jax.ShapeDtypeStruct] = {}
    leaves = [jax.tree.leaves(tree) for tree in trees]
    places = [[""] * len(of_device) for of_device in leaves]
    # No slots without elements: jaxlib 0.11.2 ends in a segmentation fault when it compiles a
    # program under `shard_map` that has one.
    order = [
        (n, k) for n, some in enumerate(leaves) for k, leaf in enumerate(some) if data_of(leaf).size
    ]
    for n, k in sorted(order, key=lambda place: -data_of(leaves[place[0]][place[1]]).size):
        leaf, data = leaves[n][k], data_of(leaves[n][k])
        rank = 2 if matrices and data.ndim > 1 and not is_key(leaf) else 1
        kind, shape = leaf.dtype.name + " matrix" * (rank > 1), _shape_in(data, rank)
        of_kind = [name for name in slots if name.rsplit(" ", 1)[0] == kind]
        growth = {
            name: math.prod(map(max, slots[name].shape, shape)) - math.prod(slots[name].shape)
            for name in of_kind
            if name not in places[n]
        }
        name = min(growth, key=lambda name: growth[name], default="")
        if not name or growth[name] > data.size:
            name = f"{kind} {len(of_kind):03d}"
            slots[name] = jax.ShapeDtypeStruct(shape, data.dtype)
        grown = tuple(map(max, slots[name].shape, shape))
        slots[name] = jax.ShapeDtypeStruct(grown, data.dtype)
        places[n][k] = name
    return dict(sorted(slots.items())), tuple(map(tuple, places))


def _shape_in(data: jax.Array | jax.ShapeDtypeStruct, rank: int) -> tuple[int, ...]:
    """The shape of a leaf in a slot: of a vector, or of a matrix `[rows, last axis]`."""
    return (data.size,) if rank == 1 else (data.size // data.shape[-1], data.shape[-1])


def _corner(slot: jax.Array, shape: Sequence[int]) -> jax.Array:
    return slot[tuple(slice(0, size) for size in shape)]


def _put(slot: jax.Array, x: jax.Array) -> jax.Array:
    return x if x.shape == slot.shape else jax.lax.dynamic_update_slice(slot, x, (0,) * x.ndim)


def _padded(x: jax.Array | None, slot: jax.ShapeDtypeStruct, padding: float) -> jax.Array:
    inexact = jnp.issubdtype(slot.dtype, jnp.inexact)
    fill = jnp.asarray(padding if inexact else 0, slot.dtype)
    if x is None:
        return jnp.full(slot.shape, fill)
    missing = [(0, size - own) for size, own in zip(slot.shape, x.shape, strict=True)]
    return jnp.pad(x, missing, constant_values=fill) if x.shape != slot.shape else x
