"""One process of the suite `scaling`: measures the inputs of the cost model and its predictions.

Started by `rig/processes.py` like `pipeline_worker.py`. Three networks: the given
model, a stack of equal convolutions, and one whose modules hardly compute, so that what is left of
its time is what the library adds to every step. The stack also comes with one module for each
device.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks.rig import programs
from experiments.benchmarks.rig.measure import seconds_of
from experiments.benchmarks.scaling_model.cost_model import RULES
from experiments.benchmarks.workers import settings as worker_settings
from experiments.benchmarks.workers.settings import Settings
from experiments.processes import distributed
from sideways_jax import Module, Network, make_mesh, models, step
from sideways_jax.devices import module_groups
from sideways_jax.devices.exchange import exchange, on_mesh
from sideways_jax.models.layers import Logits
from sideways_jax.models.simple_cnn import ConvReLU
from sideways_jax.network import network
from sideways_jax.network.linen import from_linen

_STACK = flags.DEFINE_integer("stack", 16, "modules of the stack", lower_bound=3)

WIDTH = 16  # channels of the stack
FEATURES = 16  # of the light network; at least as many as there are classes
LINK_BYTES = (2**12, 2**15, 2**18, 2**20)

Run = Callable[[], Any]  # a compiled program with its arguments


def main(argv: list[str]) -> None:
    """Measures."""
    del argv
    settings = worker_settings.given()
    worker_settings.find_devices(settings.forced, distributed.given())
    programs.tell(measure(settings, _STACK.value))


class Built(NamedTuple):
    """The programs to measure, and descriptions of the networks."""

    together: dict[str, Run]  # all processes run them
    alone: dict[str, Run]  # a module by itself, in process 0
    networks: dict[str, dict]  # results of `describe`
    light: list[dict]  # the same for networks with almost no work


def measure(settings: Settings, depth: int) -> dict:
    """Seconds of everything; lists are by round.

    Args:
      settings: of the worker.
      depth: modules of the stack.
    """
    devices, num_frames = jax.device_count(), settings.frames
    mesh = make_mesh(devices)
    built = Built({}, {}, {}, [])
    build_networks(built, settings, depth, mesh)
    build_light(built, settings, mesh)
    if devices > 1:
        for length in LINK_BYTES:
            built.together[f"link {length}"] = exchanges(length, num_frames, mesh)
    times = timed(built, settings.rounds)
    if jax.process_index() > 0:
        return {}
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    described = built.networks | {f"light {n}": one for n, one in enumerate(built.light)}
    for name, one in described.items():
        for passes in ("forward", "both"):
            one[passes] = [medians[f"{name} {passes} {i}"] / num_frames for i in one["stands_for"]]
    return {
        "devices": devices,
        "networks": built.networks,
        "light": built.light,
        "link": [
            {"bytes": length, "seconds": medians[f"link {length}"] / num_frames}
            for length in LINK_BYTES
            if devices > 1
        ],
        "times": {name: times[name] for name in built.together},
    }


def build_networks(built: Built, settings: Settings, depth: int, mesh: Mesh) -> None:
    """Adds the model, the stack, and the stack with one module for each device."""
    batch, size, num_frames, dtype = settings.batch, settings.size, settings.frames, settings.dtype
    devices = mesh.devices.size
    small = batch, size // 2, size // 2, WIDTH
    named = {
        "model": (models.make(settings.model, num_classes=10, dtype=dtype), (batch, size, size, 3)),
        "stack": (stack(depth, dtype), small),
        "one each": (stack(devices, dtype), small),
    }
    for name, (one, shape) in named.items():
        frame = jax.ShapeDtypeStruct(shape, np.float32)
        stands_for = list(range(one.depth))
        if name == "stack":  # Its inner modules are equal: one of them stands for all.
            stands_for[1:-1] = [one.depth // 2] * (one.depth - 2)
        costs = time_modules(built, name, one, frame, sorted(set(stands_for)), num_frames)
        groups = module_groups.balance([costs[i] for i in stands_for], devices)
        built.networks[name] = describe(one, frame, stands_for, groups)
        rules = [rule for rule in RULES if name == "model" or rule != "gpipe"]
        found = clips(one, frame, rules, num_frames, mesh, tuple(map(len, groups)))
        built.together.update({f"{name} {rule}": run for rule, run in found.items()})


def build_light(built: Built, settings: Settings, mesh: Mesh) -> None:
    """Adds networks with two modules a device and almost no work.

    With a long and a short clip; with the number of parameters that the model's devices hold; and
    with the size of its activations.
    """
    batch, num_frames, devices = settings.batch, settings.frames, mesh.devices.size
    model = built.networks["model"]
    params = max(sum(model["param_bytes"][i] for i in group) for group in model["groups"])
    features = max(sum(model["signal_bytes"]) // (2 * devices * 4 * batch), 2 * FEATURES)
    shorter = max(num_frames // 4, 4 * devices - 1)
    kinds = [
        (FEATURES, FEATURES, num_frames), (FEATURES, FEATURES, shorter),
        (max(params // 8, FEATURES), FEATURES, num_frames), (FEATURES, features, num_frames),
    ]  # fmt: skip
    for number, (num_params, width, frames) in enumerate(kinds):
        one = light_stack(2 * devices, num_params)
        frame = jax.ShapeDtypeStruct((batch, width), np.float32)
        name, top = f"light {number}", 2 * devices - 1
        time_modules(built, name, one, frame, [0, top], num_frames)
        groups = module_groups.from_sizes((2,) * devices, 2 * devices, devices)
        what = describe(one, frame, [0] * top + [top], groups)
        built.light.append({"frames": frames, **what})
        found = clips(one, frame, RULES, frames, mesh, (2,) * devices)
        built.together.update({f"{name} {rule}": run for rule, run in found.items()})


def time_modules(
    built: Built, name: str, one: Network, frame, indices: Sequence[int], num_frames: int
) -> dict[int, float]:
    """Adds modules to be timed later; gives the seconds of one call of each, for the groups."""
    calls = {}
    for i in indices:
        both = programs.group_alone(one, frame, (i,), num_frames)
        built.alone[f"{name} both {i}"] = both
        built.alone[f"{name} forward {i}"] = forward_alone(one, frame, i, num_frames)
        seconds_of(both)  # Warms up.
        calls[i] = seconds_of(both)
    # All processes must make the same groups.
    values = multihost_utils.broadcast_one_to_all(np.array(list(calls.values()))).tolist()
    return dict(zip(calls, values, strict=True))


def describe(one: Network, frame, stands_for: list[int], groups) -> dict:
    """The description of a network in the result, without its costs."""
    params, state = jax.eval_shape(one.init, jax.random.key(0), frame)
    shapes = one.activation_shapes(params, state, frame)
    return {
        "signal_bytes": [num_bytes(shape) for shape in shapes[:-1]],
        "param_bytes": [num_bytes(of_module) for of_module in params],
        "stands_for": stands_for,  # the module that was timed, for every module
        "groups": groups,
    }


def timed(built: Built, rounds: int) -> dict[str, list[float]]:
    """Seconds of every program, by round, after a warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in (*built.together, *built.alone)}

    for number in range(rounds + 1):
        for name, run in built.together.items():
            multihost_utils.sync_global_devices(name)
            times[name].append(seconds_of(run))
        multihost_utils.sync_global_devices(f"alone {number}")
        if jax.process_index() == 0:  # The others wait.
            for name, run in built.alone.items():
                times[name].append(seconds_of(run))
    return {name: seconds[1:] for name, seconds in times.items()}  # The first is the warm-up.


def num_bytes(tree) -> int:
    """Bytes of all arrays of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def stack(depth: int, dtype=None):
    """A network of `depth` modules of equal cost: 3x3 convolutions with equal channels.

    The last module also has the logits; the first sends no pseudo-gradient down.
    """
    types = {"dtype": dtype, "param_dtype": "float32"}
    one = ConvReLU(WIDTH, stride=1, first=False, **types)
    layers = [from_linen(one)] * depth + [from_linen(Logits(10, pool=True, **types))]
    return network.cut(layers, (1,) * (depth - 1) + (2,))


def light_stack(depth: int, num_params: int):
    """A network of modules with `num_params` parameters each, nearly all of them unused.

    Frames are vectors of any width; the last module cuts them to the width of logits.
    """

    def init(key, x):
        del key, x
        return jnp.ones((num_params,)), ()

    def scale(params, state, x, *, train, rng):
        del train, rng
        return x * params[None, :1], state

    def logits(params, state, x, *, train, rng):
        return scale(params, state, x[:, :FEATURES], train=train, rng=rng)

    return Network((*(Module(init, scale),) * (depth - 1), Module(init, logits)))


def clips(one: Network, frame, rules, num_frames, mesh, groups) -> dict:
    """Functions that run one training step on the mesh, by rule."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def spread(array):
        return jax.make_array_from_process_local_data(everywhere, array, array.shape)

    frames = np.random.default_rng(0).random((num_frames, *frame.shape), np.float32)
    labels = np.tile(np.arange(frame.shape[0], dtype=np.int32) % 10, (num_frames, 1))
    arguments, result = None, {}
    for rule in rules:
        options = {"rule": "sideways"}
        if rule != "sideways":  # As in `table2`: gpipe would keep too many residuals.
            options = {"rule": "backprop", "schedule": rule, "recompute": rule == "gpipe"}
        init, train_step = step.make_train_step(
            one, programs.loss_fn, optax.sgd(1e-3), execution="depth_sharded", mesh=mesh,
            groups=groups, **options,
        )  # fmt: skip
        # The train state is the same for all of them.
        arguments = arguments or (init(jax.random.key(0), frame), spread(frames), spread(labels))
        result[rule] = partial(jax.jit(train_step).lower(*arguments).compile(), *arguments)
    return result


def exchanges(length: int, times: int, mesh):
    """A function that exchanges `length` bytes with the neighbours, as the library does."""
    devices = mesh.devices.size

    def on_device(x):
        def body(signals, _):
            return exchange(*signals, devices), None

        signals = {"float32": x}, {"float32": x + 1}
        return jax.lax.scan(body, signals, None, length=times)[0]

    run = on_mesh(mesh, on_device, PartitionSpec(), PartitionSpec())
    everywhere = NamedSharding(mesh, PartitionSpec())
    x = jax.jit(lambda: jnp.ones((length // 4,)), out_shardings=everywhere)()
    return partial(jax.jit(run).lower(x).compile(), x)


def forward_alone(one: Network, frame, index: int, num_frames: int) -> Run:
    """A function that runs the forward pass of one module for `num_frames` steps."""
    params, state = programs.initial(one, frame)
    shapes = (frame, *one.activation_shapes(params, state, frame))
    x = jax.random.uniform(jax.random.key(1), shapes[index].shape).astype(shapes[index].dtype)

    def run(params, state, x):
        def body(state, scale):
            y, state = one.modules[index].apply(
                params, state, x * scale.astype(x.dtype), train=True, rng=jax.random.key(0)
            )
            return state, jnp.sum(y.astype(jnp.float32)[:1])

        scales = 1 + 1e-3 * jnp.arange(num_frames, dtype=jnp.float32)
        return jax.lax.scan(body, state, scales)

    arguments = params[index], state[index], x
    return partial(jax.jit(run).lower(*arguments).compile(), *arguments)


if __name__ == "__main__":
    app.run(main)
