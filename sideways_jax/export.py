"""Trained networks as StableHLO, to run where this library is not: `jax.export`.

What is exported holds the parameters and takes arrays alone. `exported.serialize()` gives bytes;
`jax.export.deserialize(bytes).call(...)` runs them, with JAX and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import NamedSharding

from sideways_jax.device_programs.start import Dispatched
from sideways_jax.network.network import Network, check_still
from sideways_jax.one_device.inference import init_pipeline, pipelined_step
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.train_state import TrainState

PLATFORMS = ("cpu", "cuda", "tpu")


class ExportedPipeline(NamedTuple):
    """Depth-parallel inference on one device, in two programs."""

    start: export.Exported  # () -> signals, a tuple of arrays: those of an empty pipeline
    # (signals, frame, reset bool [B]) -> (signals, output, int32 [B] numbers of the frames that the
    # outputs are of, -1 for none). `reset`: the frame is the first of another stream.
    step: export.Exported


def per_frame(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """The synchronous forward pass of a batch of frames: `frames [B, ...] -> output [B, ...]`.

    Args:
      network, params, state: the network runs with `train=False`.
      frame: a batch of frames, or its shape; the program takes any B.
      platforms: that it is made for, of "cpu", "cuda", "rocm" and "tpu".

    Raises:
      ValueError: if the frames do not fit the network.
    """
    network.activation_shapes(params, state, shape_of(frame))

    @jax.jit
    def apply(frames: PyTree) -> PyTree:
        return network.apply(params, state, frames, train=False)[0]

    [batch] = export.symbolic_shape("batch")

    def of_any_batch(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)

    return export.export(apply, platforms=platforms)(jax.tree.map(of_any_batch, shape_of(frame)))


def pipelined(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> ExportedPipeline:
    """One step of depth-parallel inference (`stream.pipelined_step`), on one device.

    A frame of each of B streams enters, and the output of the frame of D-1 steps before leaves. B
    is that of `frame`: the signals between modules have it, too.

    Args:
      network, params, state: D modules, which run with `train=False`.
      frame: a batch of frames, or its shape.
      platforms: as in `per_frame`.

    Raises:
      ValueError: if the frames do not fit the network, or a module has a memory.
    """
    frame = shape_of(frame)
    check_still(network, params, state, frame)
    signals = jax.eval_shape(lambda: init_pipeline(network, params, state, frame))
    structure = jax.tree.structure(signals)
    reset = jax.ShapeDtypeStruct(jax.tree.leaves(frame)[0].shape[:1], jnp.bool)

    @jax.jit
    def start() -> tuple:
        return tuple(jax.tree.leaves(init_pipeline(network, params, state, frame)))

    @jax.jit
    def step(signals: tuple, frame: PyTree, reset: jax.Array) -> tuple:
        pipeline = jax.tree.unflatten(structure, signals)
        pipeline, *shown = pipelined_step(network, params, state, pipeline, frame, reset)
        return tuple(jax.tree.leaves(pipeline)), *shown

    exporting: dict[str, Any] = {"platforms": platforms}
    return ExportedPipeline(
        export.export(start, **exporting)(),
        export.export(step, **exporting)(tuple(jax.tree.leaves(signals)), frame, reset),
    )


class ExportedTraining(NamedTuple):
    """Training, in two programs. Leaves are those of a train state, a tuple of arrays."""

    start: export.Exported  # () -> leaves: of the train state that was given
    # (leaves, frames, targets) -> (leaves, metrics), with `reset` behind `targets` on a stream, and
    # behind `metrics` the fields of `step.Outputs` if the train step gives them.
    step: export.Exported


def training(
    train_step: Callable[..., tuple],
    train_state: TrainState,
    frames: PyTree,
    targets: PyTree,
    reset: Any = None,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> ExportedTraining:
    """A train step, and the train state that it goes on from.

    On a mesh the program is for as many devices as the mesh has, and can be called on that number
    alone: `step.nr_devices`. `step.in_shardings_jax(mesh)` says where its arguments belong, on a
    mesh of the same shape and names.

    Args:
      train_step: of `step.make_train_step`, with any rule and schedule, for clips or streams.
      train_state: that it takes, from `init` or after training. `start` holds its weights.
      frames, targets: `[K, B, ...]`, or their shapes; the program takes these shapes alone.
      reset: on a stream bool `[K, B]`, or its shape; None leaves it out.
      platforms: as in `per_frame`.

    Raises:
      ValueError: for execution "program_per_device", which is many programs and Python between
        them; for a train state that is spread over several processes; and for frames, targets and
        train states that do not fit one another.
    """
    leaves, structure = jax.tree.flatten(train_state)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        raise ValueError(
            "this train state is spread over several processes, and no process has all of its "
            "weights: export it in one process that sees as many devices"
        )
    where = [_sharding(leaf) for leaf in leaves]
    values = [np.asarray(_numbers(leaf)) for leaf in leaves]

    @jax.jit
    def start() -> tuple:
        return tuple(map(jnp.asarray, values))

    @jax.jit
    def step(numbers: tuple, *clip: Any) -> tuple:
        held = [_leaf(*pair) for pair in zip(leaves, numbers, strict=True)]
        new, metrics, *outputs = train_step(jax.tree.unflatten(structure, held), *clip)
        numbers = tuple(
            leaf if place is None else jax.lax.with_sharding_constraint(leaf, place)
            for leaf, place in zip(map(_numbers, jax.tree.leaves(new)), where, strict=True)
        )
        return numbers, metrics, *(field for one in outputs for field in one)

    shapes = tuple(
        jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)
        for value, place in zip(values, where, strict=True)
    )
    clip = shape_of((frames, targets) if reset is None else (frames, targets, reset))
    try:
        exported = export.export(step, platforms=platforms)(shapes, *clip)
    except Dispatched as error:
        raise ValueError(
            "execution='program_per_device' cannot be exported: it is a program for every device, "
            "and Python hands the signals over between them. Export Pipeline(mesh), "
            "execution='depth_sharded', which does the same in one program; step.per_module "
            "converts the train state"
        ) from error
    return ExportedTraining(export.export(start, platforms=platforms)(), exported)


def _sharding(leaf: Any) -> NamedSharding | None:
    """Where a leaf lies on a mesh; None on one device."""
    place = getattr(leaf, "sharding", None)
    return place if isinstance(place, NamedSharding) and place.mesh.size > 1 else None


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    """A leaf as numbers: files of `jax.export` have no place for keys."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _leaf(like: Any, numbers: jax.Array) -> jax.Array:
    """The other way round."""
    if not _is_key(like):
        return numbers
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like))
