"""Depth-parallel inference: at every step each module works on another frame of a stream.

At each step a frame enters, and the output of the frame that entered D-1 steps before leaves. It is
exactly the output of the synchronous forward pass for that frame; with shortcuts, which bring newer
frames, that of the delayed network. With one device per module a step takes as long as the slowest
module, not as long as all of them.

`PipelinedModel` is for programs that push frames; `pipelined_step` is the pure function inside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sideways_jax.device_programs import inference as device_programs
from sideways_jax.network.network import Network
from sideways_jax.one_device.inference import (
    PipelineState,
    init_pipeline,
    pipelined_outputs,
    pipelined_step,
)
from sideways_jax.pipeline import inference
from sideways_jax.tools.names import check_name
from sideways_jax.tools.trees import PyTree, shape_of
from sideways_jax.training.streams import Outputs

__all__ = [
    "Outputs",
    "PipelineState",
    "PipelinedModel",
    "init_pipeline",
    "pipelined_outputs",
    "pipelined_step",
]


class Counters(NamedTuple):
    """Speed and latency of a `PipelinedModel` since it was made."""

    pushed: int  # frames
    latency: int  # steps from a frame to its output, D-1
    seconds: float  # spent in `push`
    frames_per_second: float  # of each stream; the first push, which compiles, does not count


class PipelinedModel:
    """A network that takes a frame of each of B streams, and gives the output of an older frame.

    Args:
      network: D modules.
      params, state: tuples of D pytrees.
      mesh: with an axis "depth", over which the modules are divided, and optionally "data", which
        splits the batch; None for one device. Outputs and latency are the same; outputs stay on
        the last device of "depth".
      execution: with a mesh: "depth_sharded", one program for all devices, also of several
        processes; or "program_per_device", which is faster on the devices of one.
      groups: how many consecutive modules each device takes; None balances counted costs.

    >>> import jax.numpy as jnp
    >>> from sideways_jax import Module, Network
    >>> double = Module(lambda key, x: ((), ()),
    ...                 lambda params, state, x, *, train, rng: (2 * x, state))
    >>> model = PipelinedModel(Network([double] * 3), ((),) * 3, ((),) * 3)
    >>> [model.push(jnp.array([x])) for x in (1.0, 10.0, 100.0, 1000.0)]
    [None, None, Array([8.], dtype=float32), Array([80.], dtype=float32)]
    >>> model.flush()
    [Array([800.], dtype=float32), Array([8000.], dtype=float32)]
    """

    def __init__(
        self,
        network: Network,
        params: tuple,
        state: tuple,
        *,
        mesh: Mesh | None = None,
        groups: Sequence[int] | None = None,
        execution: str = "depth_sharded",
    ):
        check_name("execution", execution, ("depth_sharded", "program_per_device"))
        self._network = network
        self._variables: tuple[PyTree, PyTree] = (params, state)
        self._mesh, self._groups, self._execution = mesh, groups, execution
        # Made from the first frame:
        self._pipeline: PyTree = None
        self._shape: PyTree = None
        self._step: Any = None
        self._top: Callable[[PyTree], PyTree] = lambda output: output
        self._reset: np.ndarray | None = None
        self._shown: np.ndarray | None = None
        self._pushed, self._seconds, self._compiling = 0, 0.0, 0.0
        self._flushed = False  # since the last push

    def push(self, frame: PyTree) -> PyTree | None:
        """Takes a batch of frames `[B, ...]`, gives the output of D-1 pushes ago, None before.

        After a `reset` of some streams, their entries of the output are zero until they have an
        output again; `valid` says which have one.

        Raises:
          ValueError: for frames of another shape than those before.
        """
        start = time.perf_counter()
        shape = shape_of(frame)
        if self._shape is None:
            self._prepare(shape)
        elif shape != self._shape:
            raise ValueError(
                f"this pipeline holds frames like {self._shape}, it cannot take {shape}: make "
                "another PipelinedModel for frames of another size"
            )
        output, self._shown = self._advance(frame, self._reset)
        self._reset, self._flushed = np.zeros_like(self._reset), False
        seconds = time.perf_counter() - start
        self._pushed += 1
        self._seconds += seconds
        if self._pushed == 1:
            self._compiling = seconds
        return output if (self._shown >= 0).any() else None

    def flush(self) -> list[PyTree]:
        """The outputs still to come, when the streams have ended: of the last D-1 frames, in order.

        With fewer than D-1 frames so far, of those there are. With shortcuts, which bring newer
        frames than the main path, of those for which all frames came. The next frame is the first
        of other streams then, as after `reset`. `valid` is `[n, B]` after it, for n outputs: where
        a stream was reset within the last D-1 frames, what was before that is gone, and its entries
        are zero. `counters` do not change.
        """
        if self._reset is None:  # Nothing was pushed yet.
            return []
        nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._shape)
        drained = [
            self._advance(nothing, np.zeros_like(self._reset))
            for _ in range(0 if self._flushed else self._network.wiring.shortest_path - 1)
        ]
        self._reset, self._flushed = np.ones_like(self._reset), True
        there = [(output, shown) for output, shown in drained if (shown >= 0).any()]
        self._shown = np.array([shown for _, shown in there]).reshape(-1, *self._reset.shape)
        return [output for output, _ in there]

    def _advance(self, frame: PyTree, reset: np.ndarray | None) -> tuple[PyTree, np.ndarray]:
        """One step: the output, and which frame of each stream it is of, -1 for none."""
        self._pipeline, output, shown = self._step(
            self._variables, self._pipeline, frame, jnp.asarray(reset)
        )
        return jax.block_until_ready(self._top(output)), np.asarray(shown)

    def reset(self, streams: np.ndarray | None = None) -> None:
        """Starts new streams with the next frame: all, or where `streams`, bool `[B]`, is true.

        Raises:
          ValueError: for anything but a truth value for each stream.
        """
        if self._reset is None:  # Nothing was pushed yet.
            return
        chosen = np.ones_like(self._reset) if streams is None else np.asarray(streams)
        if chosen.dtype != bool or chosen.shape != self._reset.shape:
            raise ValueError(
                f"streams={streams!r}: give a truth value for each of the {len(self._reset)} "
                "streams of the batch"
            )
        self._reset |= chosen

    @property
    def valid(self) -> np.ndarray:
        """Bool `[B]`: which streams the last `push` has an output of; see `flush` for after it."""
        if self._shown is None:
            raise ValueError("nothing was pushed yet: there is no output that could be valid")
        return self._shown >= 0

    @property
    def counters(self) -> Counters:
        """Frames, latency and throughput so far; the first push, which compiles, does not count."""
        running = self._seconds - self._compiling
        speed = (self._pushed - 1) / running if self._pushed > 1 else 0.0
        return Counters(self._pushed, self._network.depth - 1, self._seconds, speed)

    def _prepare(self, frame: PyTree) -> None:
        params, state = self._variables
        self._shape = frame
        self._reset = np.zeros(jax.tree.leaves(frame)[0].shape[:1], bool)
        if self._mesh is not None and self._execution == "program_per_device":
            groups = None if self._groups is None else tuple(self._groups)
            self._variables, self._pipeline, self._step = device_programs.make_pipelined_step(
                self._network, params, state, frame, mesh=self._mesh, groups=groups
            )
            return
        if self._mesh is None:
            self._pipeline = init_pipeline(self._network, params, state, frame)

            def step(variables: tuple, *inputs: Any) -> tuple:
                return pipelined_step(self._network, *variables, *inputs)

        else:
            mesh = self._mesh
            pipelined = inference.make_pipelined_step(
                self._network, params, state, frame, mesh=mesh, groups=self._groups
            )
            self._variables, self._pipeline, step = pipelined
            self._top = lambda rows: inference.top_row(rows, mesh)
        self._step = jax.jit(step, donate_argnums=1)
