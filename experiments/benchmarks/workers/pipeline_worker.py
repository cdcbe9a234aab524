"""One process of the suites `table2`, `online` and `peers`: measures, and process 0 prints JSON.

`rig/processes.py` starts one process, with a device and cores of its own, for every device of the
pipeline. All programs run in turn on the same devices; programs for one device run in process 0
while the other processes wait. For `peers` it runs the programs that `rig/turns.py` asks for.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks.rig import programs, turns
from experiments.benchmarks.rig.measure import seconds_of, temporary_bytes
from experiments.benchmarks.workers import data_parallel, reference
from experiments.benchmarks.workers import settings as worker_settings
from experiments.benchmarks.workers.settings import Settings
from experiments.processes import distributed
from sideways_jax import make_mesh, models, step
from sideways_jax.devices import module_groups
from sideways_jax.stream import PipelinedModel

_KIND = flags.DEFINE_enum(
    "kind", "clips", ["clips", "online", "peers"], "updates per clip, or per frame; or answers"
)
_REFERENCE = flags.DEFINE_string("reference", None, "of peers: the file that process 0 writes")

Add = Callable[..., None]  # add(name, init, train_step): compiles a program that will be measured


def main(argv: list[str]) -> None:
    """Measures, or answers."""
    del argv
    settings = worker_settings.given()
    worker_settings.find_devices(settings.forced, distributed.given())
    built = build(settings, _KIND.value, _REFERENCE.value)
    if _KIND.value == "peers":
        serve(built)
    else:
        programs.tell(measure(built, settings.rounds))


class Built(NamedTuple):
    """Everything that is measured, compiled."""

    programs: dict[str, tuple[Any, tuple]]  # compiled (or a function), and its arguments
    together: list[str]  # names of programs of all processes; the others are for process 0
    groups_alone: dict[str, Any]  # "group n": runs the modules of a device of this process
    sizes: tuple[int, ...]  # of the groups
    module_costs: list[float]  # seconds


def build(settings: Settings, kind: str, reference_file: str | None) -> Built:
    """Compiles the programs of this kind, and saves the network if a file is given."""
    num_devices = jax.device_count()
    network = models.make(settings.model, num_classes=10, dtype=settings.dtype)
    clip = _clip(settings)
    frame = jax.ShapeDtypeStruct(clip[0].shape[1:], np.float32)
    costs = programs.module_costs(network, frame, settings.frames)
    costs = multihost_utils.broadcast_one_to_all(np.asarray(costs)).tolist()
    groups = module_groups.balance(costs, num_devices)
    mesh, sizes = make_mesh(num_devices), tuple(map(len, groups))
    tx, found = optax.sgd(1e-3), {}
    add = _adder(found, frame, clip)

    def make(**options):
        return step.make_train_step(network, programs.loss_fn, tx, **options)

    everywhere = NamedSharding(mesh, PartitionSpec())
    pipeline = {"execution": "depth_sharded", "mesh": mesh, "groups": sizes}
    if kind == "online":
        _add_online(partial(add, where=everywhere), make, pipeline)
        found["inference pipelined depth_sharded"] = pipelined(
            network, frame, clip[0], mesh=mesh, groups=sizes
        )
    else:
        _add_clips(partial(add, where=everywhere), make, pipeline)
    if kind == "peers" and settings.batch % num_devices == 0:
        _add_data_parallel(add, network, tx, num_devices)
    together = list(found)
    if kind == "clips":
        for rule, execution in itertools.product(
            ("sideways", "backprop"), ("scan", "time_parallel")
        ):
            add(f"{rule} {execution}", *make(rule=rule, execution=execution))
    elif kind == "online":
        add("sideways scan", *make(update_every=1))
        if jax.process_index() == 0:
            found["inference pipelined scan"] = pipelined(network, frame, clip[0])
    alone = {
        f"group {n}": programs.group_alone(network, frame, groups[n], settings.frames)
        for n in range(num_devices)
        if mesh.devices.flat[n].process_index == jax.process_index()
    }
    if jax.process_index() == 0 and reference_file:
        reference.save(reference_file, network, jax.random.key(0), *clip)
    return Built(found, together, alone, sizes, costs)


def _clip(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Frames `[K, B, H, W, 3]` and labels `[K, B]`."""
    shape = settings.frames, settings.batch, settings.size, settings.size, 3
    frames = np.random.default_rng(0).random(shape, np.float32)
    return frames, np.tile(np.arange(settings.batch, dtype=np.int32) % 10, (settings.frames, 1))


def _adder(found: dict[str, tuple[Any, tuple]], frame, clip) -> Add:
    """A function that compiles a program and puts it into `found`.

    `where` is the sharding of the clip; without it the program is for process 0 alone.
    """

    def spread(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    def add(name, init, train_step, where=None):
        if where is not None:
            arguments = init(jax.random.key(0), frame), *(spread(x, where) for x in clip)
        elif jax.process_index() == 0:
            arguments = jax.jit(lambda key: init(key, frame))(jax.random.key(0)), *clip
        else:
            return
        found[name] = jax.jit(train_step).lower(*arguments).compile(), arguments

    return add


def _add_clips(add: Add, make: Callable, pipeline: dict[str, Any]) -> None:
    for rule, schedule in (
        ("sideways", None), ("backprop", "blocking"), ("backprop", "gpipe"), ("backprop", "1f1b"),
    ):  # fmt: skip
        name = " ".join(filter(None, (rule, schedule, "depth_sharded")))
        # gpipe has many residuals; keeping them is slower here.
        recompute = schedule == "gpipe" if schedule else None
        add(name, *make(rule=rule, schedule=schedule, recompute=recompute, **pipeline))


def _add_online(add: Add, make: Callable, pipeline: dict[str, Any]) -> None:
    add("sideways depth_sharded", *make(update_every=1, **pipeline))
    blocking = {"rule": "backprop", "schedule": "blocking", "recompute": False}
    add("backprop blocking depth_sharded", *make(**blocking, **pipeline))


def _add_data_parallel(add: Add, network, tx, num_devices: int) -> None:
    mesh = make_mesh(1, data=num_devices)
    for execution in ("scan", "time_parallel"):
        program = data_parallel.make_train_step(
            network, programs.loss_fn, tx, execution=execution, mesh=mesh
        )
        where = NamedSharding(mesh, data_parallel.CLIP)
        add(f"backprop data_parallel {execution}", *program, where=where)


def measure(built: Built, rounds: int) -> dict:
    """Seconds of every program and of every group of modules alone, round by round.

    The groups run at the same time, each in its process: devices that share memory are slower when
    all of them work.
    """
    compiled, together, groups_alone, sizes, costs = built
    runs = {name: partial(program, *given) for name, (program, given) in compiled.items()}
    times: dict[str, list[float]] = {name: [] for name in (*runs, *groups_alone)}

    for _ in range(rounds + 1):
        for name in together:
            multihost_utils.sync_global_devices(name)
            times[name].append(seconds_of(runs[name]))
        multihost_utils.sync_global_devices("alone")
        for name in runs:
            if name not in together:
                times[name].append(seconds_of(runs[name]))
        for name, run in groups_alone.items():
            multihost_utils.sync_global_devices("group")
            times[name].append(seconds_of(run))
    alone = np.asarray([times.pop(name) for name in groups_alone])
    alone = multihost_utils.process_allgather(alone).reshape(jax.device_count(), -1)
    times |= {f"group {n}": seconds.tolist() for n, seconds in enumerate(alone)}
    times = {name: seconds[1:] for name, seconds in times.items()}  # The first is the warm-up.
    return {
        "devices": jax.device_count(), "groups": sizes, "module_costs": costs, "times": times,
        "temporary_bytes": bytes_of(compiled),
    }  # fmt: skip


def bytes_of(compiled) -> dict[str, int]:
    """Temporary bytes of each compiled program, on each device."""
    return {
        name: temporary_bytes(program)
        for name, (program, _) in compiled.items()
        if isinstance(program, jax.stages.Compiled)
    }


def pipelined(network, frame, frames, **where):
    """A function that pushes frame after frame to a `PipelinedModel`, and its argument."""
    model = PipelinedModel(network, *programs.initial(network, frame), **where)

    def show(frames):
        for frame in frames:
            output = model.push(frame)
        return output

    show(frames[: network.depth])  # Compiles.
    return show, (frames,)


def serve(built: Built) -> None:
    """Runs the programs that the suite `peers` asks for, one at a time."""

    def clip(program, arguments):
        _, metrics = jax.block_until_ready(program(*arguments))
        return {name: float(metrics[name]) for name in ("loss", "grad_norm")}

    def group(name):
        if name in built.groups_alone:
            jax.block_until_ready(built.groups_alone[name]())

    groups = [f"group {n}" for n in range(len(built.sizes))]
    turns.serve(
        {name: partial(clip, *built.programs[name]) for name in built.together}
        | {name: partial(group, name) for name in groups},
        groups=built.sizes,
        module_costs=built.module_costs,
        temporary_bytes=bytes_of(built.programs),
    )


if __name__ == "__main__":
    app.run(main)
