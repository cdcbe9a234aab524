"""One process of the suites `table2`, `online` and `peers`: runs the programs that are asked for.

With `depth_sharded`, `rig/processes.py` starts one process, with a device and cores of its own, for
every device of the pipeline; programs for one device run in process 0 while the others wait. With
`program_per_device` there is one process with all devices and all of these cores.
"""

from __future__ import annotations

import collections
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
from experiments.benchmarks.workers import reference
from experiments.benchmarks.workers import settings as worker_settings
from experiments.benchmarks.workers.settings import Settings
from experiments.processes import distributed
from sideways_jax import make_mesh, models, step
from sideways_jax.devices import module_groups
from sideways_jax.stream import PipelinedModel

_KIND = flags.DEFINE_enum(
    "kind", "clips", ["clips", "online", "peers"], "updates per clip, or per frame; or with answers"
)
_EXECUTION = flags.DEFINE_enum(
    "execution", "depth_sharded", ["depth_sharded", "program_per_device"], "of the pipelines"
)
_GROUPS = flags.DEFINE_list("groups", None, "how many modules each device takes; by costs if none")
_REFERENCE = flags.DEFINE_string("reference", None, "of peers: the file that process 0 writes")

# What pipelined backprop keeps of a frame, by whether it runs the forward pass again.
KEPT = {True: "inputs", False: "residuals"}

Add = Callable[..., None]  # add(name, init, train_step): compiles a program that will be measured


def main(argv: list[str]) -> None:
    """Compiles, and answers."""
    del argv
    settings = worker_settings.given()
    worker_settings.find_devices(settings.forced, distributed.given())
    sizes = None if _GROUPS.value is None else tuple(map(int, _GROUPS.value))
    serve(build(settings, _KIND.value, _EXECUTION.value, sizes, _REFERENCE.value))


class Built(NamedTuple):
    """Everything that is measured, compiled."""

    programs: dict[str, tuple[Any, tuple]]  # a function, and its arguments
    together: list[str]  # names of programs of all processes; the others are for process 0
    groups_alone: dict[str, Any]  # "group n": runs the modules of a device of this process
    sizes: tuple[int, ...]  # of the groups
    module_costs: list[float]  # seconds


def build(
    settings: Settings, kind: str, execution: str, sizes: tuple[int, ...] | None,
    reference_file: str | None,
) -> Built:  # fmt: skip
    """Compiles the programs of this kind, and saves the network if a file is given."""
    num_devices = jax.device_count()
    network = models.make(settings.model, num_classes=10, dtype=settings.dtype)
    clip = _clip(settings)
    frame = jax.ShapeDtypeStruct(clip[0].shape[1:], np.float32)
    costs: list[float] = []
    if sizes is None:
        costs = programs.module_costs(network, frame, settings.frames)
        costs = multihost_utils.broadcast_one_to_all(np.asarray(costs)).tolist()
        sizes = tuple(map(len, module_groups.balance(costs, num_devices)))
    groups = module_groups.from_sizes(sizes, network.depth, num_devices)
    mesh, tx, found = make_mesh(num_devices), optax.sgd(1e-3), {}
    add = _adder(found, frame, clip)

    def make(**options):
        return step.make_train_step(network, programs.loss_fn, tx, **options)

    everywhere = NamedSharding(mesh, PartitionSpec())
    pipeline = {"execution": execution, "mesh": mesh, "groups": sizes}
    in_pipeline = partial(add, where=everywhere)
    if execution == "program_per_device":
        in_pipeline = _adder_of_steps(found, frame, clip, donates=kind != "peers")
    if kind == "online":
        _add_online(in_pipeline, make, pipeline)
        found[f"inference pipelined {execution}"] = pipelined(
            network, frame, clip[0], mesh=mesh, groups=sizes, execution=execution
        )
    else:
        _add_clips(in_pipeline, make, pipeline)
    if kind == "clips":
        for recompute, kept in KEPT.items():
            exact = make(rule="pipelined_backprop", recompute=recompute, **pipeline)
            in_pipeline(f"pipelined_backprop {kept} {execution}", *exact)
    together = list(found)
    if execution == "program_per_device":
        return Built(found, together, {}, sizes, costs)
    if kind == "peers" and settings.batch % num_devices == 0:
        _add_data_parallel(add, make, num_devices)
        together = list(found)
    if kind == "clips":
        for rule, name in itertools.product(("sideways", "backprop"), ("scan", "time_parallel")):
            add(f"{rule} {name}", *make(rule=rule, execution=name))
        for recompute, kept in KEPT.items():
            exact = make(rule="pipelined_backprop", execution=step.Scan(recompute))
            add(f"pipelined_backprop {kept} scan", *exact)
    elif kind == "online":
        add("sideways scan", *make(update_every=1))
        exact = make(rule="pipelined_backprop", update_every=1)
        add("pipelined_backprop inputs scan", *exact)
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


def _adder_of_steps(found: dict[str, tuple[Any, tuple]], frame, clip, *, donates: bool) -> Add:
    """The same for train steps that dispatch programs of their own.

    With `donates` a call goes on from the weights of the one before, and takes them over; otherwise
    all calls begin with the same.
    """

    def add(name, init, train_step):
        held = [init(jax.random.key(0), frame)]

        def run(*clip):
            train_state, metrics = train_step(held[0], *clip)
            if donates:
                held[0] = train_state
            return train_state, metrics

        found[name] = run, clip

    return add


def _add_clips(add: Add, make: Callable, pipeline: dict[str, Any]) -> None:
    for rule, schedule in (
        ("sideways", None), ("backprop", "blocking"), ("backprop", "gpipe"), ("backprop", "1f1b"),
    ):  # fmt: skip
        name = " ".join(filter(None, (rule, schedule, pipeline["execution"])))
        # gpipe has many residuals; keeping them is slower here.
        recompute = schedule == "gpipe" if schedule else None
        add(name, *make(rule=rule, schedule=schedule, recompute=recompute, **pipeline))


def _add_online(add: Add, make: Callable, pipeline: dict[str, Any]) -> None:
    execution = pipeline["execution"]
    add(f"sideways {execution}", *make(update_every=1, **pipeline))
    exact = make(rule="pipelined_backprop", update_every=1, **pipeline)
    add(f"pipelined_backprop inputs {execution}", *exact)
    blocking = {"rule": "backprop", "schedule": "blocking", "recompute": False}
    add(f"backprop blocking {execution}", *make(**blocking, **pipeline))


def _add_data_parallel(add: Add, make: Callable, num_devices: int) -> None:
    mesh = make_mesh(1, data=num_devices)
    where = NamedSharding(mesh, PartitionSpec(None, "data"))
    for execution in ("scan", "time_parallel"):
        program = make(rule="backprop", execution=execution, mesh=mesh)
        add(f"backprop data_parallel {execution}", *program, where=where)


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
    """Runs the programs that are asked for, one at a time; "groups" are all of this process."""
    is_first = jax.process_index() == 0

    def answer(program, arguments):
        result = jax.block_until_ready(program(*arguments))
        metrics = result[1] if isinstance(result, tuple) else {}
        return {name: float(metrics[name]) for name in ("loss", "grad_norm") if name in metrics}

    def alone():
        return {name: seconds_of(run) for name, run in built.groups_alone.items()}

    def nothing():
        return {}

    # A process has no programs for one device but the first.
    runs = {name: partial(answer, *one) for name, one in built.programs.items()}
    turns.serve(
        collections.defaultdict(lambda: nothing, runs | {"groups": alone}),
        groups=built.sizes,
        module_costs=built.module_costs,
        temporary_bytes=bytes_of(built.programs) if is_first else {},
    )


if __name__ == "__main__":
    app.run(main)
