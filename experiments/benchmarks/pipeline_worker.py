"""One process of the suites `table2`, `online` and `peers`: measures, and process 0 prints JSON.

Started by `experiments/benchmarks/rig.py`, one process with a device and cores of its own for every
device of the pipeline. All programs run in turn on the same devices; those that need one device
only run in process 0 while the others wait. For `peers` it runs what it is asked to (`turns.py`).
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments import distributed
from experiments.benchmarks import turns

_MODEL = flags.DEFINE_string("model", "simple_cnn", "the network")
_BATCH = flags.DEFINE_integer("batch", 8, "clips")
_FRAMES = flags.DEFINE_integer("frames", 64, "K")
_SIZE = flags.DEFINE_integer("size", 32, "height and width of the frames")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "timed calls of each program, in turn")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the activations")
_KIND = flags.DEFINE_enum(
    "kind", "clips", ["clips", "online", "peers"], "updates per clip, or per frame; or answers"
)
_REFERENCE = flags.DEFINE_string("reference", None, "of peers: the file that process 0 writes")
_FORCED = flags.DEFINE_integer("forced", 0, "devices of one process instead of several processes")


def main(argv: list[str]) -> None:
    """Measures, or answers."""
    del argv
    start()
    if _KIND.value == "peers":
        serve(build())
    else:
        tell(measure())


def start() -> None:
    """Finds the devices: those of all processes, or the forced ones of this."""
    import jax

    if _FORCED.value:
        jax.config.update("jax_num_cpu_devices", _FORCED.value)
    else:
        distributed.initialize()


def tell(result: dict) -> None:
    """Prints what was measured for `rig.measure`; process 0 does."""
    import jax

    if jax.process_index() == 0:
        print("RESULT " + json.dumps(result), flush=True)


class Built(NamedTuple):
    """Everything that is measured, compiled."""

    programs: dict[str, tuple[Any, tuple]]  # compiled, or a function, and its arguments
    together: list[str]  # names of those that all processes run; the others are process 0's
    groups_alone: dict[str, Any]  # "group n": runs the modules of a device of this process
    sizes: tuple[int, ...]  # of the groups
    module_costs: list[float]  # seconds


def build() -> Built:
    """Compiles what `kind` asks for."""
    import jax
    import numpy as np
    import optax
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec

    from experiments.benchmarks import data_parallel, reference
    from experiments.benchmarks.rules import loss_fn
    from sideways_jax import make_mesh, models, placement, step

    # The first message needs all processes within half a minute, compilation may take one longer.
    multihost_utils.sync_global_devices("start")
    num_devices = jax.device_count()
    network = models.make(_MODEL.value, num_classes=10, dtype=_DTYPE.value)
    rng = np.random.default_rng(0)
    shape = (_FRAMES.value, _BATCH.value, _SIZE.value, _SIZE.value, 3)
    frames = rng.random(shape, np.float32)
    labels = np.tile(np.arange(_BATCH.value, dtype=np.int32) % 10, (_FRAMES.value, 1))
    frame = jax.ShapeDtypeStruct(shape[1:], np.float32)

    costs = module_costs(network, frame)
    costs = multihost_utils.broadcast_one_to_all(np.asarray(costs)).tolist()
    groups = placement.balance(costs, num_devices)
    sizes = tuple(map(len, groups))
    mesh = make_mesh(num_devices)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def spread(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    tx = optax.sgd(1e-3)
    programs = {}

    def add(name, init, train_step, clip=everywhere):
        if clip is not None:
            arguments = init(jax.random.key(0), frame), spread(frames, clip), spread(labels, clip)
        elif jax.process_index() == 0:
            train_state = jax.jit(lambda key: init(key, frame))(jax.random.key(0))
            arguments = train_state, frames, labels
        else:
            return
        programs[name] = jax.jit(train_step).lower(*arguments).compile(), arguments

    pipeline = {"execution": "depth_sharded", "mesh": mesh, "groups": sizes}
    if _KIND.value in ("clips", "peers"):
        for rule, schedule in (
            ("sideways", None), ("backprop", "blocking"), ("backprop", "gpipe"),
            ("backprop", "1f1b"),
        ):  # fmt: skip
            name = " ".join(filter(None, (rule, schedule, "depth_sharded")))
            options = {"rule": rule, "schedule": schedule, **pipeline}
            options["recompute"] = schedule == "gpipe"  # whose residuals are many: slower here
            add(name, *step.make_train_step(network, loss_fn, tx, **options))
    elif _KIND.value == "online":
        add(
            "sideways depth_sharded",
            *step.make_train_step(network, loss_fn, tx, update_every=1, **pipeline),
        )
        add(
            "backprop blocking depth_sharded",
            *step.make_train_step(
                network, loss_fn, tx, rule="backprop", schedule="blocking", recompute=False,
                **pipeline,
            ),
        )  # fmt: skip
        programs["inference pipelined depth_sharded"] = pipelined(
            network, frame, frames, mesh=mesh, groups=sizes
        )
    if _KIND.value == "peers" and _BATCH.value % num_devices == 0:
        replicas = make_mesh(1, data=num_devices)
        for execution in ("scan", "time_parallel"):
            add(
                f"backprop data_parallel {execution}",
                *data_parallel.make_train_step(
                    network, loss_fn, tx, execution=execution, mesh=replicas
                ),
                clip=NamedSharding(replicas, data_parallel.CLIP),
            )
    together = list(programs)
    if _KIND.value == "clips":
        for rule, execution in itertools.product(
            ("sideways", "backprop"), ("scan", "time_parallel")
        ):
            options = {"rule": rule, "execution": execution}
            add(
                f"{rule} {execution}",
                *step.make_train_step(network, loss_fn, tx, **options),
                clip=None,
            )
    elif _KIND.value == "online":
        add(
            "sideways scan",
            *step.make_train_step(network, loss_fn, tx, update_every=1),
            clip=None,
        )
        if jax.process_index() == 0:
            programs["inference pipelined scan"] = pipelined(network, frame, frames)
    group_programs = {
        f"group {n}": group_alone(network, frame, groups[n])
        for n in range(num_devices)
        if mesh.devices.flat[n].process_index == jax.process_index()
    }
    if jax.process_index() == 0 and _REFERENCE.value:
        reference.save(_REFERENCE.value, network, jax.random.key(0), frames, labels)
    return Built(programs, together, group_programs, sizes, costs)


def measure() -> dict:
    """Seconds of every program, round by round, and what they are compared with.

    The groups alone, on processes of their own, run at the same time: devices that share memory are
    slower when all of them work.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    programs, together, groups_alone, sizes, costs = build()
    runs = {name: partial(compiled, *given) for name, (compiled, given) in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in (*runs, *groups_alone)}

    def measured(name, run):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times[name].append(time.perf_counter() - start)

    for _ in range(_ROUNDS.value + 1):
        for name in together:
            multihost_utils.sync_global_devices(name)
            measured(name, runs[name])
        multihost_utils.sync_global_devices("alone")
        for name in runs:
            if name not in together:
                measured(name, runs[name])
        for name, run in groups_alone.items():
            multihost_utils.sync_global_devices("group")
            measured(name, run)
    alone = np.asarray([times.pop(name) for name in groups_alone])
    alone = multihost_utils.process_allgather(alone).reshape(jax.device_count(), -1)
    times |= {f"group {n}": seconds.tolist() for n, seconds in enumerate(alone)}
    times = {name: seconds[1:] for name, seconds in times.items()}  # The first is the warm-up.
    return {
        "devices": jax.device_count(), "groups": sizes, "module_costs": costs, "times": times,
        "temporary_bytes": temporary_bytes(programs),
    }  # fmt: skip


def temporary_bytes(programs) -> dict[str, int]:
    """Of each compiled program, on each device."""
    import jax

    return {
        name: compiled.memory_analysis().temp_size_in_bytes
        for name, (compiled, _) in programs.items()
        if isinstance(compiled, jax.stages.Compiled)
    }


def pipelined(network, frame, frames, **where):
    """A function that shows frame after frame to a `PipelinedModel`, and its argument."""
    from sideways_jax.stream import PipelinedModel

    model = PipelinedModel(network, *initial(network, frame), **where)

    def show(frames):
        for frame in frames:
            output = model.push(frame)
        return output

    show(frames[: network.depth])  # Compiles.
    return show, (frames,)


def serve(built: Built) -> None:
    """Runs the programs that the suite `peers` asks for, one at a time."""
    import jax

    def clip(compiled, arguments):
        _, metrics = jax.block_until_ready(compiled(*arguments))
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
        temporary_bytes=temporary_bytes(built.programs),
    )


@functools.cache
def initial(network, frame):
    """Parameters and states of a network; compiled once, which takes seconds."""
    import jax

    return jax.jit(lambda key: network.init(key, frame))(jax.random.key(0))


def group_alone(network, frame, group):
    """A function that runs some modules for K steps, as in a pipeline, on one device."""
    import jax
    import jax.numpy as jnp

    from sideways_jax.module_step import module_step
    from sideways_jax.trees import zeros

    params, state = initial(network, frame)
    shapes = (frame, *network.activation_shapes(params, state, frame))
    key = jax.random.key(1)
    inputs = [
        jax.random.uniform(jax.random.fold_in(key, i), shapes[i].shape).astype(shapes[i].dtype)
        for i in group
    ]
    cotangents = [
        jax.random.normal(jax.random.fold_in(key, 100 + i), shapes[i + 1].shape).astype(
            shapes[i + 1].dtype
        )
        for i in group
    ]

    def run(params, state, inputs, cotangents):
        def body(carry, scale):
            state, sums, inputs, cotangents = carry
            # Something new at every step: XLA would compute what stays the same only once.
            inputs = [inputs[0] * scale.astype(inputs[0].dtype), *inputs[1:]]
            cotangents = [*cotangents[:-1], cotangents[-1] * scale.astype(cotangents[-1].dtype)]
            steps = [
                module_step(network.modules[i], params[i], state[j], inputs[j], cotangents[j],
                            rng=key)
                for j, i in enumerate(group)
            ]  # fmt: skip
            sums = [jax.tree.map(jnp.add, s, one.grads) for s, one in zip(sums, steps, strict=True)]
            outs = [one.output for one in steps], [one.pseudo_gradient for one in steps]
            # Signals move by one module; what comes from outside the group stays as it was.
            inputs = [inputs[0], *outs[0][:-1]]
            cotangents = [*outs[1][1:], cotangents[-1]]
            kept = (
                jnp.sum(outs[0][-1].astype(jnp.float32)[:1]),
                (jnp.sum(outs[1][0].astype(jnp.float32)[:1]) if group[0] else 0.0),
            )
            return ([one.state for one in steps], sums, inputs, cotangents), kept

        sums = [zeros(params[i]) for i in group]
        start = [state[i] for i in group], sums, inputs, cotangents
        scales = 1 + 1e-3 * jnp.arange(_FRAMES.value, dtype=jnp.float32)
        return jax.lax.scan(body, start, scales)

    arguments = params, state, inputs, cotangents
    return partial(jax.jit(run).lower(*arguments).compile(), *arguments)


def module_costs(network, frame) -> list[float]:
    """Seconds of each module alone for K steps, the best of three."""
    import jax

    costs = []
    for i in range(network.depth):
        run = group_alone(network, frame, (i,))
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - start)
        costs.append(min(seconds[1:]))
    return costs


if __name__ == "__main__":
    app.run(main)
