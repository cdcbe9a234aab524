"""One process of the suite `scaling`: measures what the cost model needs, and what it predicts.

Started by `experiments/benchmarks/rig.py` like `pipeline_worker.py`, whose flags it shares. Three
networks: the given model, a stack of equal convolutions, and one whose modules hardly compute, so
that what is left of its time is what the library adds to every step. The stack also comes with one
module for each device.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks import pipeline_worker
from experiments.benchmarks.cost_model import RULES

FLAGS = flags.FLAGS
flags.DEFINE_integer("stack", 16, "modules of the stack", lower_bound=3)

WIDTH = 16  # channels of the stack
FEATURES = 16  # of the light network; at least as many as there are classes
LINK_BYTES = (2**12, 2**15, 2**18, 2**20)


def main(argv: list[str]) -> None:
    """Measures."""
    del argv
    pipeline_worker.start()
    pipeline_worker.tell(measure())


def measure() -> dict:
    """What everything takes; lists are by round."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from sideways_jax import make_mesh, models, placement

    devices = jax.device_count()
    mesh = make_mesh(devices)
    dtype = FLAGS.dtype
    batch, size, num_frames = FLAGS.batch, FLAGS.size, FLAGS.frames
    programs, alone, networks, light = {}, {}, {}, []

    def time_modules(name, network, frame, indices):
        """Lets modules be timed later; what one call of each takes, for the groups."""
        calls = {}
        for i in indices:
            alone[f"{name} both {i}"] = both = pipeline_worker.group_alone(network, frame, (i,))
            alone[f"{name} forward {i}"] = forward_alone(network, frame, i)
            calls[i] = seconds_of(both)
        # All processes have to make the same groups.
        values = multihost_utils.broadcast_one_to_all(np.array(list(calls.values()))).tolist()
        return dict(zip(calls, values, strict=True))

    def describe(network, frame, stands_for, groups):
        params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
        shapes = network.activation_shapes(params, state, frame)
        return {
            "signal_bytes": [num_bytes(one) for one in shapes[:-1]],
            "param_bytes": [num_bytes(one) for one in params],
            "stands_for": stands_for,  # the module that was timed, for every module
            "groups": groups,
        }

    small = batch, size // 2, size // 2, WIDTH
    named = {
        "model": (models.make(FLAGS.model, num_classes=10, dtype=dtype), (batch, size, size, 3)),
        "stack": (stack(FLAGS.stack, dtype), small),
        "one each": (stack(devices, dtype), small),
    }
    for name, (network, shape) in named.items():
        frame = jax.ShapeDtypeStruct(shape, np.float32)
        depth = network.depth
        stands_for = list(range(depth))
        if name == "stack":  # Its inner modules are equal: one of them stands for all.
            stands_for[1:-1] = [depth // 2] * (depth - 2)
        costs = time_modules(name, network, frame, sorted(set(stands_for)))
        groups = placement.balance([costs[i] for i in stands_for], devices)
        networks[name] = describe(network, frame, stands_for, groups)
        rules = [rule for rule in RULES if name == "model" or rule != "gpipe"]
        sizes = tuple(map(len, groups))
        for rule, run in clips(network, frame, rules, num_frames, mesh, sizes).items():
            programs[f"{name} {rule}"] = run

    # Two modules a device that hardly compute, in a long and a short clip; with as many parameters
    # as the model's devices hold; and with its activations.
    model = networks["model"]
    params = max(sum(model["param_bytes"][i] for i in group) for group in model["groups"])
    features = max(sum(model["signal_bytes"]) // (2 * devices * 4 * batch), 2 * FEATURES)
    shorter = max(num_frames // 4, 4 * devices - 1)
    kinds = [
        (FEATURES, FEATURES, num_frames), (FEATURES, FEATURES, shorter),
        (max(params // 8, FEATURES), FEATURES, num_frames), (FEATURES, features, num_frames),
    ]  # fmt: skip
    for number, (num_params, width, frames) in enumerate(kinds):
        network = light_stack(2 * devices, num_params)
        frame = jax.ShapeDtypeStruct((batch, width), np.float32)
        name, top = f"light {number}", 2 * devices - 1
        time_modules(name, network, frame, [0, top])
        groups = placement.from_sizes((2,) * devices, 2 * devices, devices)
        light.append({"frames": frames, **describe(network, frame, [0] * top + [top], groups)})
        found = clips(network, frame, RULES, frames, mesh, (2,) * devices)
        programs |= {f"{name} {rule}": program for rule, program in found.items()}

    if devices > 1:
        for length in LINK_BYTES:
            programs[f"link {length}"] = exchanges(length, num_frames, mesh)

    times: dict[str, list[float]] = {name: [] for name in (*programs, *alone)}

    def call(name, run, counts):
        start = time.perf_counter()
        jax.block_until_ready(run())
        if counts:
            times[name].append(time.perf_counter() - start)

    for number in range(FLAGS.rounds + 1):
        for name, run in programs.items():
            multihost_utils.sync_global_devices(name)
            call(name, run, number > 0)
        multihost_utils.sync_global_devices(f"alone {number}")
        if jax.process_index() == 0:  # The others wait.
            for name, run in alone.items():
                call(name, run, number > 0)
    if jax.process_index() > 0:
        return {}
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    described = networks | {f"light {number}": one for number, one in enumerate(light)}
    for name, one in described.items():
        for passes in ("forward", "both"):
            one[passes] = [medians[f"{name} {passes} {i}"] / num_frames for i in one["stands_for"]]
    return {
        "devices": devices,
        "networks": networks,
        "light": light,
        "link": [
            {"bytes": length, "seconds": medians[f"link {length}"] / num_frames}
            for length in LINK_BYTES
            if devices > 1
        ],
        "times": {name: times[name] for name in programs},
    }


def num_bytes(tree) -> int:
    """Bytes of all arrays of a pytree."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def stack(depth: int, dtype=None):
    """A network of so many modules that cost the same: 3x3 convolutions of as many channels.

    The last of them gives logits as well, and the first has no pseudo-gradient to send down.
    """
    from sideways_jax import network
    from sideways_jax.linen import from_linen
    from sideways_jax.models.layers import Logits
    from sideways_jax.models.simple_cnn import ConvReLU

    types = {"dtype": dtype, "param_dtype": "float32"}
    one = ConvReLU(WIDTH, stride=1, first=False, **types)
    layers = [from_linen(one)] * depth + [from_linen(Logits(10, pool=True, **types))]
    return network.cut(layers, (1,) * (depth - 1) + (2,))


def light_stack(depth: int, num_params: int):
    """A network of modules with so many parameters each, nearly all of them without use.

    Frames are vectors of any width; the last module leaves logits of them.
    """
    import jax.numpy as jnp

    from sideways_jax import Module, Network

    def init(key, x):
        del key, x
        return jnp.ones((num_params,)), ()

    def scale(params, state, x, *, train, rng):
        del train, rng
        return x * params[None, :1], state

    def logits(params, state, x, *, train, rng):
        return scale(params, state, x[:, :FEATURES], train=train, rng=rng)

    return Network((*(Module(init, scale),) * (depth - 1), Module(init, logits)))


def clips(network, frame, rules, num_frames, mesh, groups) -> dict:
    """Functions that run one training step on the mesh, by rule."""
    import jax
    import numpy as np
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from experiments.benchmarks.rules import loss_fn
    from sideways_jax import step

    everywhere = NamedSharding(mesh, PartitionSpec())

    def spread(array):
        return jax.make_array_from_process_local_data(everywhere, array, array.shape)

    frames = np.random.default_rng(0).random((num_frames, *frame.shape), np.float32)
    labels = np.tile(np.arange(frame.shape[0], dtype=np.int32) % 10, (num_frames, 1))
    arguments, result = None, {}
    for rule in rules:
        options = {"rule": "sideways"}
        if rule != "sideways":  # As in `table2`: what is kept for gpipe would be too much.
            options = {"rule": "backprop", "schedule": rule, "recompute": rule == "gpipe"}
        init, train_step = step.make_train_step(
            network, loss_fn, optax.sgd(1e-3), execution="depth_sharded", mesh=mesh,
            groups=groups, **options,
        )  # fmt: skip
        # The train state is the same for all of them.
        arguments = arguments or (init(jax.random.key(0), frame), spread(frames), spread(labels))
        result[rule] = partial(jax.jit(train_step).lower(*arguments).compile(), *arguments)
    return result


def exchanges(length: int, times: int, mesh):
    """A function that exchanges so many bytes with the neighbours, as the library does."""
    import jax
    import jax.numpy as jnp

    from sideways_jax.layout import exchange

    devices = mesh.devices.size

    def on_device(x):
        def body(signals, _):
            return exchange(*signals, devices), None

        signals = {"float32": x}, {"float32": x + 1}
        return jax.lax.scan(body, signals, None, length=times)[0]

    one = jax.sharding.PartitionSpec()
    run = jax.shard_map(on_device, mesh=mesh, in_specs=one, out_specs=one, check_vma=False)
    everywhere = jax.sharding.NamedSharding(mesh, one)
    x = jax.jit(lambda: jnp.ones((length // 4,)), out_shardings=everywhere)()
    return partial(jax.jit(run).lower(x).compile(), x)


def seconds_of(run) -> float:
    """What the second call takes."""
    import jax

    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def forward_alone(network, frame, index: int):
    """A function that runs the forward pass of one module for K steps."""
    import jax
    import jax.numpy as jnp

    params, state = pipeline_worker.initial(network, frame)
    shapes = (frame, *network.activation_shapes(params, state, frame))
    x = jax.random.uniform(jax.random.key(1), shapes[index].shape).astype(shapes[index].dtype)

    def run(params, state, x):
        def body(state, scale):
            y, state = network.modules[index].apply(
                params, state, x * scale.astype(x.dtype), train=True, rng=jax.random.key(0)
            )
            return state, jnp.sum(y.astype(jnp.float32)[:1])

        scales = 1 + 1e-3 * jnp.arange(FLAGS.frames, dtype=jnp.float32)
        return jax.lax.scan(body, state, scales)

    arguments = params[index], state[index], x
    return partial(jax.jit(run).lower(*arguments).compile(), *arguments)


if __name__ == "__main__":
    app.run(main)
