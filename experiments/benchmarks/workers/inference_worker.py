"""One process of the suite `inference`: a network cut in several ways, a frame at a time.

`--programs=each` is for a process with a core of its own for every device: in process 0 sequential
programs and pipelines of one device, in all of them the pipelines of one program. With `together`
one process has all devices, and runs pipelines with a program for each; with `threads` it has one
device, and a thread for every core.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import jax
import numpy as np

from experiments.benchmarks.rig import turns
from experiments.benchmarks.rig.programs import num_layers
from experiments.benchmarks.workers import settings as worker_settings
from experiments.benchmarks.workers.settings import Settings
from experiments.processes import distributed
from sideways_jax import Network, make_mesh, models
from sideways_jax.devices import module_groups
from sideways_jax.models import safetensors
from sideways_jax.stream import PipelinedModel
from sideways_jax.tools.trees import PyTree

KINDS = ("each", "together", "threads")
CLASSES = 1000
_PROGRAMS = flags.DEFINE_enum("programs", "each", KINDS, "which of them")
_MODULES = flags.DEFINE_list("modules", ["2"], "into how many the network is cut")
_DEVICES = flags.DEFINE_integer("pipeline", 2, "the devices of a pipeline")
_WEIGHTS = flags.DEFINE_string("weights", "", "a file with pretrained weights; random if none")
_FOLDER = flags.DEFINE_string(
    "folder", None, "with the stream; process 0 of `each` adds what the modules answer one by one"
)


def main(argv: list[str]) -> None:
    """Compiles, and answers."""
    del argv
    settings = worker_settings.given()
    worker_settings.find_devices(settings.forced, distributed.given())
    folder, numbers = Path(_FOLDER.value), tuple(map(int, _MODULES.value))
    cuts = make_cuts(settings, numbers, _DEVICES.value, _WEIGHTS.value)
    runs = programs(_PROGRAMS.value, cuts, folder, settings.frames)
    about = {str(d): {"layers": cut.layers, "groups": cut.groups} for d, cut in cuts.items()}
    turns.serve(runs, cuts=about)


class Cut(NamedTuple):
    """The network in D modules."""

    network: Network
    params: tuple
    state: tuple
    layers: tuple[int, ...]  # of each module
    groups: tuple[int, ...]  # modules of each device


def make_cuts(
    settings: Settings, numbers: Sequence[int], devices: int, weights: str
) -> dict[int, Cut]:
    """The network in each of these numbers of modules, by counted costs; the weights are the same.

    Raises:
      ValueError: for more modules than layers, or fewer than devices.
    """
    make = partial(models.make, settings.model, num_classes=CLASSES, dtype=settings.dtype)
    whole = make(cut=(1,) * num_layers(settings.model))
    frame = jax.ShapeDtypeStruct((settings.batch, settings.size, settings.size, 3), np.uint8)
    params, state = jax.jit(lambda key: whole.init(key, frame))(jax.random.key(0))
    if weights:
        fitted = models.with_weights(settings.model, safetensors.read(weights), params, state)
        params, state = fitted.params, fitted.state
    costs = module_groups.count_costs(whole, params, state, frame, train=False)
    found = {}
    for number in numbers:
        sizes = tuple(map(len, module_groups.balance(costs, number)))
        shares = [sum(part) for part in _divided(costs, sizes)]
        groups = tuple(map(len, module_groups.balance(shares, devices)))
        found[number] = Cut(
            make(cut=sizes), _of_modules(params, sizes), _of_modules(state, sizes), sizes, groups
        )
    return found


def _divided(values: Sequence, sizes: Sequence[int]) -> list[tuple]:
    ends = np.cumsum(sizes).tolist()
    return [tuple(values[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _of_modules(layers: tuple, sizes: Sequence[int]) -> tuple:
    """Parameters by layer, by module: a module of one layer has no tuple around it."""
    return tuple(part[0] if len(part) == 1 else part for part in _divided(layers, sizes))


def programs(
    kind: str, cuts: dict[int, Cut], folder: Path, count: int
) -> dict[str, Callable[[], dict]]:
    """The programs of this process by name, compiled; each goes on through the stream.

    Args:
      kind: one of `KINDS`.
      cuts: by the number of modules.
      folder: with `stream.npy`, uint8 `[S, B, H, W, 3]`; process 0 of `each` adds `answers-D.npy`,
        `[S, B, C]`, what the modules answer when each runs alone, one after the other.
      count: how many frames a call takes.
    """
    frames, first, found = np.load(folder / "stream.npy"), min(cuts), {}
    here, there = jax.process_index(), jax.process_count()

    def add(name: str, push: Callable, number: int, **options: Any) -> None:
        expected = folder / f"answers-{number}.npy"
        found[name] = player(push, frames, expected, count, **options)

    if kind != "together":
        if kind == "each" and here == 0:
            for number, cut in cuts.items():
                one_by_one = modules_alone(cut)
                answers = [np.asarray(one_by_one(frame)[0]) for frame in frames]
                np.save(folder / f"answers-{number}.npy", np.stack(answers))
                add(f"one_by_one {number}", one_by_one, number)
        whole = whole_network(cuts[first])
        if kind == "each" and there > 1:
            add("in_turn", whole, first, place=here, stride=there)
        if here == 0:
            add("sequential", whole, first)
    for number, cut in cuts.items():
        if kind == "each":
            push = in_pipeline(cut, "depth_sharded")
            add(f"depth_sharded {number}", push, number, lag=number - 1)
        if kind == "together":
            push = in_pipeline(cut, "program_per_device")
            add(f"program_per_device {number}", push, number, lag=number - 1)
        elif here == 0:
            add(f"one_device {number}", in_pipeline(cut, None), number, lag=number - 1)
    if kind == "each":  # A process answers what it has no program for, too.
        return {name: found.get(name, dict) for name in _names(cuts, there)}
    return found


def _names(cuts: dict[int, Cut], processes: int) -> list[str]:
    """Of the programs of `each`, which all of its processes are asked for."""
    kinds = "one_by_one", "one_device", "depth_sharded"
    names = [f"{kind} {number}" for number in cuts for kind in kinds]
    return ["sequential", *(["in_turn"] if processes > 1 else []), *names]


def whole_network(cut: Cut) -> Callable[[PyTree], tuple[jax.Array, list[float]]]:
    """All modules in one program."""
    program = jax.jit(lambda *arguments: cut.network.apply(*arguments)[0])
    return lambda frame: (jax.block_until_ready(program(cut.params, cut.state, frame)), [])


def modules_alone(cut: Cut) -> Callable[[PyTree], tuple[PyTree, list[float]]]:
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


def in_pipeline(cut: Cut, execution: str | None) -> Callable[[PyTree], tuple[PyTree, list[float]]]:
    """A `PipelinedModel` on one device, or over all of them."""
    where: dict[str, Any] = {}
    if execution:
        mesh = make_mesh(jax.device_count())
        where = {"mesh": mesh, "execution": execution, "groups": cut.groups}
    model = PipelinedModel(cut.network, cut.params, cut.state, **where)
    return lambda frame: (model.push(frame), [])


def player(
    push: Callable[[PyTree], tuple[Any, list[float]]], frames: np.ndarray, expected: Path,
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


if __name__ == "__main__":
    app.run(main)
