"""One process of the suite `inference`: a network cut in several ways, a frame at a time.

`--programs=each` is for a process with a core of its own for every device: in process 0 sequential
programs and pipelines of one device, in all of them the pipelines of one program. With `together`
one process has all devices, and runs pipelines with a program for each; with `threads` it has one
device, and a thread for every core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.benchmarks.rig import turns
from experiments.benchmarks.rig.frame_by_frame import (
    Cut,
    Layers,
    Push,
    costs_of,
    in_layers,
    in_pipeline,
    make_cut,
    modules_alone,
    player,
    whole_network,
)
from experiments.benchmarks.workers import settings as worker_settings
from experiments.processes import distributed

KINDS = ("each", "together", "threads")
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
    frame = jax.ShapeDtypeStruct((settings.batch, settings.size, settings.size, 3), np.uint8)
    layers = in_layers(settings.model, frame, weights=_WEIGHTS.value, dtype=settings.dtype)
    costs = costs_for_all(_PROGRAMS.value, layers, folder)
    cuts = {number: make_cut(layers, costs, number, _DEVICES.value) for number in numbers}
    runs = programs(_PROGRAMS.value, cuts, folder, settings.frames)
    about = {str(d): {"layers": cut.layers, "groups": cut.groups} for d, cut in cuts.items()}
    turns.serve(runs, cuts=about)


def costs_for_all(kind: str, layers: Layers, folder: Path) -> list[float]:
    """Seconds of each layer, as process 0 of `each` has measured them; it is started first."""
    path = folder / "costs.npy"
    if kind != "each":
        return np.load(path).tolist()
    costs = np.zeros(layers.network.depth, np.float32)
    if jax.process_index() == 0:
        costs[:] = costs_of(layers, np.load(folder / "stream.npy")[0])
        np.save(path, costs)
    return multihost_utils.broadcast_one_to_all(costs).tolist()


def programs(
    kind: str, cuts: dict[int, Cut], folder: Path, count: int
) -> dict[str, Callable[[], dict]]:
    """The programs of this process by name, compiled; each goes on through the stream.

    Args:
      kind: one of `KINDS`.
      cuts: by the number of modules.
      folder: with `stream.npy`, uint8 `[S, B, H, W, 3]`; process 0 of `each` adds `answers-D.npy`,
        `[S, B, C]`, what the modules answer when each runs alone, one after the other. If there is
        `lesson.npy`, more frames, it adds `lesson-answers.npy`, too.
      count: how many frames a call takes.
    """
    frames, first, found = np.load(folder / "stream.npy"), min(cuts), {}
    here, there = jax.process_index(), jax.process_count()

    def add(name: str, push: Push, number: int, **options: Any) -> None:
        expected = folder / f"answers-{number}.npy"
        found[name] = player(push, frames, expected, count, **options)

    if kind != "together":
        if kind == "each" and here == 0:
            for number, cut in cuts.items():
                one_by_one = modules_alone(cut)
                _answer(one_by_one, frames, folder / f"answers-{number}.npy")
                add(f"one_by_one {number}", one_by_one, number)
        whole = whole_network(cuts[first])
        if kind == "each" and here == 0 and (folder / "lesson.npy").exists():
            _answer(whole, np.load(folder / "lesson.npy"), folder / "lesson-answers.npy")
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


def _answer(push: Push, frames: np.ndarray, path: Path) -> None:
    np.save(path, np.stack([np.asarray(push(frame)[0]) for frame in frames]))


def _names(cuts: dict[int, Cut], processes: int) -> list[str]:
    """Of the programs of `each`, which all of its processes are asked for."""
    kinds = "one_by_one", "one_device", "depth_sharded"
    names = [f"{kind} {number}" for number in cuts for kind in kinds]
    return ["sequential", *(["in_turn"] if processes > 1 else []), *names]


if __name__ == "__main__":
    app.run(main)
