"""Exported programs give what the network gives, for any number of frames."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from sideways_jax import Module, Network, export, from_linen, make_mesh, models, step

pytestmark = pytest.mark.usefixtures("quick_compile")


class Merge(nn.Module):
    @nn.compact
    def __call__(self, x):
        older, newer = x
        both = jnp.concatenate([older, newer], axis=-1)
        return nn.Dense(3)(nn.Conv(4, (3, 3))(both).mean(axis=(1, 2)))


NETWORKS = {
    "simple_cnn": lambda: models.simple_cnn(4, widths=(4, 4, 4, 4, 4), cut=(2, 2, 2)),
    "vgg8": lambda: models.vgg8(
        4, widths=(4, 4, 4, 4, 4), hidden=(8, 8), dropout_rate=0.5, cut=(4, 4)
    ),
    "autoencoder": lambda: models.autoencoder(widths=(4, 4, 4, 4, 4), normalise=True),
    "shortcut": lambda: Network(
        [from_linen(nn.Conv(4, (3, 3))), from_linen(Merge())], shortcuts=[(-1, 1)]
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "simple_cnn",
        "shortcut",
        pytest.param("vgg8", marks=pytest.mark.full),
        pytest.param("autoencoder", marks=pytest.mark.full),
    ],
)
def test_the_same_as_the_network(name):
    network = NETWORKS[name]()
    kind = np.float32 if name == "shortcut" else np.uint8
    size = 32 if name == "vgg8" else 16
    frames = np.random.default_rng(0).integers(0, 255, (5, size, size, 3)).astype(kind)
    params, state = jax.jit(network.init)(jax.random.key(0), frames)
    exported = export.per_frame(network, params, state, frames[:2])
    assert set(exported.platforms) == set(export.PLATFORMS)
    apply = jax.jit(lambda frames: network.apply(params, state, frames)[0])
    for count in (1, 5):  # Neither is the number that it was made from.
        np.testing.assert_allclose(
            exported.call(frames[:count]), apply(frames[:count]), rtol=1e-5, atol=1e-6
        )

    start, one_step = export.pipelined(network, params, state, frames[:1])
    signals, found = start.call(), {}
    for number, frame in enumerate(frames):
        reset = np.array([number == 3])  # Two streams, of three and of two frames.
        signals, output, of_frame = one_step.call(signals, frame[None], reset)
        if of_frame[0] >= 0:
            found[int(of_frame[0])] = output[0]
    assert set(found) == {n for n in range(5) if n + network.depth <= (3 if n < 3 else 5)}
    if name != "shortcut":  # Which brings newer frames in a pipeline.
        for number, output in found.items():
            np.testing.assert_allclose(output, apply(frames)[number], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_an_error_of_the_library():
    network = NETWORKS["simple_cnn"]()
    params, state = network.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="module 0"):
        export.per_frame(network, params, state, np.zeros((1, 16, 16, 5), np.uint8))

    def count(params, state, x, *, train, rng):
        return x, state + 1

    memory = Network([Module(lambda key, x: ((), jnp.zeros(())), count)])
    with pytest.raises(ValueError, match="changes its state in evaluation"):
        export.pipelined(memory, ((),), (jnp.zeros(()),), np.zeros((1, 2), np.float32))


# Runs exported training with JAX alone, and prints the losses.
ALONE = """
import sys
sys.modules["sideways_jax"] = None
import jax, numpy as np
from jax import export

jax.config.update("jax_num_cpu_devices", 2)
folder, *names = sys.argv[1:]
for name in names:
    def load(part):
        with open(f"{folder}/{name}.{part}", "rb") as file:
            return export.deserialize(file.read())
    start, step = load("start"), load("step")
    clip = tuple(np.load(f"{folder}/{name}.npz").values())
    leaves = start.call()
    if step.nr_devices > 1:
        assert step.nr_devices == 2
        auto = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh((1, 2), ("data", "depth"), axis_types=auto)
        where = step.in_shardings_jax(mesh)
        leaves = jax.device_put(leaves, tuple(where[: len(leaves)]))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        clip = jax.device_put(clip, everywhere)
    run = jax.jit(step.call, donate_argnums=0)
    for _ in range(3):
        leaves, metrics, *outputs = run(leaves, *clip)
        print(name, float(metrics["loss"]), *(one.shape for one in outputs), flush=True)
    assert all(len(leaf.sharding.device_set) == step.nr_devices for leaf in leaves)
"""
TRAINING = {
    "scan": {"execution": "scan"},
    "time_parallel": {"execution": "time_parallel"},
    "depth_sharded": {"execution": "depth_sharded"},
    "1f1b": {"execution": "depth_sharded", "rule": "backprop", "schedule": "1f1b"},
    "stream": {"execution": "scan", "update_every": 1, "with_outputs": True},
    "stream_on_a_mesh": {"execution": "depth_sharded", "update_every": 1},
}


def small_training(options):
    """What makes a train state, the train step, and a clip for it; with dropout, and Adam."""
    if options["execution"] in ("depth_sharded", "program_per_device"):
        options = options | {"mesh": make_mesh(2)}
    network = Network(
        [from_linen(nn.Dense(5)), from_linen(nn.Sequential([nn.Dense(4), nn.Dropout(0.5)])),
         from_linen(nn.Dense(3))]
    )  # fmt: skip
    init, train_step = step.make_train_step(
        network, lambda output, target: jnp.mean((output - target) ** 2), optax.adam(1e-2),
        **options,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    clip = [rng.random((6, 2, size), np.float32) for size in (4, 3)]
    if "update_every" in options:
        clip.append(rng.random((6, 2)) < 0.2)
    return init, train_step, clip


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize(
    "names",
    [
        ("depth_sharded", "stream"),
        pytest.param(("scan", "time_parallel", "1f1b", "stream_on_a_mesh"), marks=pytest.mark.full),
    ],
)
def test_training_goes_on_without_the_library(names, tmp_path):
    expected = []
    for name in names:
        init, train_step, clip = small_training(TRAINING[name])
        train_step = jax.jit(train_step)
        train_state, *_ = train_step(init(jax.random.key(0), clip[0][0]), *clip)
        exported = export.training(train_step, train_state, *clip)
        assert set(exported.step.platforms) == set(export.PLATFORMS)
        for part, program in exported._asdict().items():
            (tmp_path / f"{name}.{part}").write_bytes(program.serialize())
        np.savez(tmp_path / f"{name}.npz", *clip)
        for _ in range(3):
            train_state, metrics, *outputs = train_step(train_state, *clip)
            shapes = [leaf.shape for leaf in jax.tree.leaves(outputs)]
            expected.append((name, float(metrics["loss"]), " ".join(map(str, shapes))))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path), *names],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert [(name, "".join(shapes)) for name, _, *shapes in found] == [
        (name, shapes) for name, _, shapes in expected
    ]
    np.testing.assert_allclose(
        [float(line[1]) for line in found], [loss for _, loss, _ in expected], rtol=1e-5
    )


@pytest.mark.usefixtures("usual_promotion")
def test_a_program_for_every_device_is_no_export():
    init, train_step, clip = small_training({"execution": "program_per_device"})
    with pytest.raises(ValueError, match=r"cannot be exported.*Export Pipeline\(mesh\)"):
        export.training(train_step, init(jax.random.key(0), clip[0][0]), *clip)


@pytest.mark.usefixtures("usual_promotion")
def test_training_takes_the_shapes_that_it_was_exported_for():
    init, train_step, clip = small_training(TRAINING["scan"])
    exported = export.training(train_step, init(jax.random.key(0), clip[0][0]), *clip)
    with pytest.raises(ValueError, match=r"(?i)shape"):
        exported.step.call(exported.start.call(), clip[0][:5], clip[1][:5])
