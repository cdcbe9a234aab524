"""A network in modules that takes a frame at a time: whole, module by module, or in a pipeline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.rig.programs import num_layers
from sideways_jax import Network, make_mesh, models
from sideways_jax.devices import module_groups
from sideways_jax.models import safetensors
from sideways_jax.stream import PipelinedModel
from sideways_jax.tools.trees import PyTree

CLASSES = 1000
Push = Callable[[PyTree], tuple[Any, list[float]]]  # a frame: an output, and seconds of its parts


class Cut(NamedTuple):
    """The network in D modules."""

    network: Network
    params: tuple
    state: tuple
    layers: tuple[int, ...]  # of each module
    groups: tuple[int, ...]  # modules of each device


class Layers(NamedTuple):
    """The network with a module for each layer, and how it is cut otherwise."""

    network: Network
    params: tuple
    state: tuple
    cut: Callable[[tuple[int, ...]], Network]  # by how many layers each module takes


def in_layers(
    model: str, frame: jax.ShapeDtypeStruct, *, weights: str = "", dtype: str = "float32"
) -> Layers:
    """Makes a network.

    Args:
      model: its name.
      frame: the shape of a batch of frames.
      weights: a file with pretrained weights; random ones if there is none.
      dtype: of the activations.
    """

    def cut(sizes: tuple[int, ...]) -> Network:
        return models.make(model, num_classes=CLASSES, dtype=dtype, cut=sizes)

    network = cut((1,) * num_layers(model))
    params, state = jax.jit(lambda key: network.init(key, frame))(jax.random.key(0))
    if weights:
        fitted = models.with_weights(model, safetensors.read(weights), params, state)
        params, state = fitted.params, fitted.state
    return Layers(network, params, state, cut)


def costs_of(layers: Layers, frame: np.ndarray) -> list[float]:
    """Seconds of each layer alone, the best of five."""
    push = modules_alone(layers)
    push(frame)  # Compiles.
    return np.min([push(frame)[1] for _ in range(5)], axis=0).tolist()


def make_cut(layers: Layers, costs: Sequence[float], modules: int, devices: int) -> Cut:
    """The network in D modules, and those on N devices, as even as their costs allow.

    Raises:
      ValueError: for more modules than layers, or fewer than devices.
    """
    sizes = tuple(map(len, module_groups.balance(costs, modules)))
    shares = [sum(part) for part in divided(costs, sizes)]
    groups = tuple(map(len, module_groups.balance(shares, devices)))
    params, state = (_of_modules(one, sizes) for one in (layers.params, layers.state))
    return Cut(layers.cut(sizes), params, state, sizes, groups)


def divided(values: Sequence, sizes: Sequence[int]) -> list[tuple]:
    """Consecutive parts of these sizes.

    >>> divided("abc", (2, 1))
    [('a', 'b'), ('c',)]
    """
    ends = np.cumsum(sizes).tolist()
    return [tuple(values[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _of_modules(layers: tuple, sizes: Sequence[int]) -> tuple:
    """Parameters by layer, by module: a module of one layer has no tuple around it."""
    return tuple(part[0] if len(part) == 1 else part for part in divided(layers, sizes))


def whole_network(cut: Cut) -> Push:
    """All modules in one program."""
    program = jax.jit(lambda *arguments: cut.network.apply(*arguments)[0])
    return lambda frame: (jax.block_until_ready(program(cut.params, cut.state, frame)), [])


def modules_alone(cut: Cut | Layers) -> Push:
    """A program for each module, one after the other, and the seconds of each."""

    def program(module):
        return jax.jit(lambda *arguments: module.apply(*arguments, train=False, rng=None)[0])

    runs = [program(module) for module in cut.network.modules]

    def push(frame):
        seconds = []
        for run, params, state in zip(runs, cut.params, cut.state, strict=True):
            start = time.perf_counter()
            frame = jax.block_until_ready(run(params, state, frame))
            seconds.append(time.perf_counter() - start)
        return frame, seconds

    return push


def in_pipeline(cut: Cut, execution: str | None) -> Push:
    """A `PipelinedModel` on one device, or over several."""
    where: dict[str, Any] = {}
    if execution:
        mesh = make_mesh(len(cut.groups))
        where = {"mesh": mesh, "execution": execution, "groups": cut.groups}
    model = PipelinedModel(cut.network, cut.params, cut.state, **where)
    return lambda frame: (model.push(frame), [])


def player(
    push: Push, frames: np.ndarray, expected: Path,
    count: int, *, lag: int = 0, place: int = 0, stride: int = 1,
) -> Callable[[], dict[str, Any]]:  # fmt: skip
    """A function that goes on through a stream, over and over, by `count` frames a call.

    Args:
      push: takes a frame `[B, ...]`, gives the output of `lag` pushes before, and the seconds of
        its parts.
      frames: the stream, `[S, B, ...]`.
      expected: the file that will have the outputs of all its frames.
      count: of the frames of a call.
      lag: pushes.
      place, stride: of every `stride` frames it takes only the one at `place`, as one of so many
        devices does that take frames in turn.

    Returns:
      The function. It gives whether all outputs were those expected, bit for bit (`equal`), and by
      how much they differ at most, relative to the largest (`difference`); `latency`, seconds from
      a push to the return of the push that gives its output, the median; and the median seconds
      of each part. Nothing, if outputs are not in this process.
    """
    for frame in frames[-max(lag, 1) :]:  # Compiles, and fills the pipeline.
        push(frame)
    position = 0

    def play() -> dict[str, Any]:
        nonlocal position
        answers = np.load(expected, mmap_mode="r")
        begun, ended, parts, equal, difference = [], [], [], True, 0.0
        outputs = {}
        for number in range(position + place, position + count, stride):
            begun.append(time.perf_counter())
            output, seconds = push(frames[number % len(frames)])
            ended.append(time.perf_counter())
            parts.append(seconds)
            outputs[(number - lag) % len(frames)] = output
        position += count
        for number, output in outputs.items():
            if not output.addressable_shards:  # It is on a device of another process.
                return {}
            output = np.asarray(output)
            equal = equal and np.array_equal(output, answers[number])
            apart = np.abs(output - answers[number]).max() / np.abs(answers[number]).max()
            difference = max(difference, float(apart))
        waited = [end - start for start, end in zip(begun, ended[lag:], strict=False)]
        return {
            "equal": bool(equal),
            "difference": difference,
            "latency": statistics.median(waited) if waited else None,
            "parts": [statistics.median(one) for one in zip(*parts, strict=True)],
        }

    return play
