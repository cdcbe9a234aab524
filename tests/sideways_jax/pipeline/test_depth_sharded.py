"""Sideways on many devices is Sideways on one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sideways_jax import Module, Network, make_mesh, step
from sideways_jax.devices import report
from sideways_jax.devices.exchange import run_branch
from sideways_jax.rule.task import Task
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import (
    TOLERANCE,
    assert_close,
    case,
    clip,
    episode,
    loop_bodies,
    variables,
)

RNG = functools.partial(jax.random.key, sharding.RNG_SEED)


@functools.cache
def _expected(name, dtype, target):
    network, frame = case(name, dtype)
    start = variables(network, frame, dtype)
    frames = clip(2 * network.depth + 1, frame, dtype)
    return start, frames, episode(network, *start, *frames, rng=RNG(), target=target)


# What `scan` gives --------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("num_devices", [1, 2, 3, "D"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["simple_cnn", "vgg8", "uneven"])
def test_any_number_of_devices(name, dtype, num_devices):
    network, _ = case(name, dtype)
    start, frames, expected = _expected(name, dtype, "stream")
    mesh = make_mesh(network.depth if num_devices == "D" else num_devices)
    actual = episode(
        network, *start, *frames, rng=RNG(), execution="depth_sharded", mesh=mesh
    )  # fmt: skip
    assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.usefixtures("x64", "quick_compile")
def test_an_episode_is_that_of_scan():
    """The other networks, and a device for every module: `test_sharded_training.py`."""
    network, _ = case("uneven")
    start, frames, expected = _expected("uneven", "float64", "origin")
    actual = episode(
        network, *start, *frames, rng=RNG(), target="origin", groups=(5, 2),
        execution="depth_sharded", mesh=make_mesh(2),
    )  # fmt: skip
    assert_close(actual, expected, TOLERANCE["float64"])


@pytest.mark.usefixtures("quick_compile")
def test_an_episode_in_single_precision():
    network, _ = case("simple_cnn", "float32")
    start, frames, expected = _expected("simple_cnn", "float32", "stream")
    actual = episode(network, *start, *frames, execution="depth_sharded", mesh=make_mesh(3))
    assert_close(actual, expected, TOLERANCE["float32"])


@pytest.mark.usefixtures("x64", "quick_compile")
def test_replicas_with_batch_norm_over_all_of_them():
    """The statistics of the whole batch, by a mean over `data` inside the modules."""
    start, frames, expected = _expected("vgg8, sure", "float64", "stream")
    reduced, _ = case("vgg8, reduced")
    actual = episode(
        reduced, *start, *frames, rng=RNG(), execution="depth_sharded", mesh=make_mesh(3, data=2)
    )
    assert_close(actual, expected, TOLERANCE["float64"])


@pytest.mark.usefixtures("x64", "quick_compile")
def test_replicas_keep_batch_norm_to_themselves_by_default():
    """Then an episode is the mean of those of the halves of the batch."""
    network = networks.batch_norm_network(3)
    start = variables(network, (5,))
    frames, targets = clip(6, (5,))
    halves = [
        episode(network, *start, frames[:, part], targets[:, part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    actual = episode(
        network, *start, frames, targets, execution="depth_sharded", mesh=make_mesh(2, data=2)
    )
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *[one._replace(
        outputs=(), valid=(), num_grads=()) for one in halves])  # fmt: skip
    expected = mean._replace(
        outputs=jnp.concatenate([one.outputs for one in halves], axis=1),
        valid=halves[0].valid,
        num_grads=halves[0].num_grads,
    )
    assert_close(actual, expected, TOLERANCE["float64"])
    whole = episode(network, *start, frames, targets)
    assert np.abs(whole.grads[0][0]["kernel"] - actual.grads[0][0]["kernel"]).max() > 1e-3


@pytest.mark.usefixtures("x64", "quick_compile")
def test_dropout_of_replicas_differs():
    network = networks.dropout_network(2)
    start = variables(network, (5,))
    frames, targets = clip(4, (5,), batch=2)
    frames, targets = (jnp.concatenate([x, x], axis=1) for x in (frames, targets))
    mesh = make_mesh(2, data=2)
    one = episode(network, *start, frames, targets, rng=RNG(), execution="depth_sharded", mesh=mesh)
    assert np.abs(one.outputs[1:, :2] - one.outputs[1:, 2:]).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.usefixtures("x64", "quick_compile")
def test_bytes_and_not_training():
    network = networks.keyless_mixed_network(3)
    frames, targets = networks.byte_clip(6)
    start = network.init(jax.random.key(0), frames[0])
    options = {"train": False}
    actual = episode(
        network, *start, frames, targets, execution="depth_sharded", mesh=make_mesh(2), **options
    )
    assert_close(actual, episode(network, *start, frames, targets, **options), 1e-10)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_a_mesh_of_the_user():
    mesh = jax.make_mesh((2,), ("depth",), axis_types=(jax.sharding.AxisType.Auto,))
    network = networks.dense_network(2)
    start = variables(network, (5,))
    frames = clip(4, (5,))
    actual = episode(network, *start, *frames, execution="depth_sharded", mesh=mesh)
    assert_close(actual, episode(network, *start, *frames), 1e-10)


# What must have no effect -------------------------------------------------------------------------


def _poisoned(network, start, frames, *, num_devices, bubble=jnp.nan, **options):
    pipeline = step.Pipeline(make_mesh(num_devices), **options)
    return pipeline.episode(Task(network, squared_error), *start, *frames, RNG(), bubble=bubble)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(("num_devices", "groups"), [(2, (3, 1)), (4, None)])
def test_bubbles_and_padding_leak_nothing(num_devices, groups):
    network = Network(
        [
            networks.chain(networks.dense(7), networks.batch_norm()),
            networks.chain(networks.dense(3), networks.cumulative_mean()),
            networks.chain(networks.dense(9), networks.dropout(), networks.counter()),
            networks.chain(networks.batch_norm(), networks.linear(networks.NUM_OUTPUTS)),
        ]
    )
    start = variables(network, (5,))
    frames = clip(9, (5,))
    actual = _poisoned(network, start, frames, num_devices=num_devices, groups=groups)
    assert_close(actual, episode(network, *start, *frames, rng=RNG()), TOLERANCE["float64"])


def _watched(module, seen, index):
    """Notes whether the activations and the pseudo-gradients that reach a module are numbers."""

    def note(kind, x):
        jax.debug.callback(lambda bad: seen.append((kind, index, bool(bad))), jnp.isnan(x).any())

    @jax.custom_vjp
    def watch(y):
        return y

    def back(_, cotangent):
        note("pseudo-gradient", cotangent)
        return (cotangent,)

    watch.defvjp(lambda y: (y, None), back)

    def apply(params, state, x, *, train, rng):
        note("activation", x)
        y, state = module.apply(params, state, x, train=train, rng=rng)
        return watch(y), state

    return Module(module.init, apply)


@pytest.mark.usefixtures("quick_compile")
def test_the_poison_is_where_nothing_has_arrived():
    """Otherwise the test above would show nothing."""
    seen, plain = [], networks.dense_network(4)
    network = Network([_watched(m, seen, i) for i, m in enumerate(plain.modules)])
    start = variables(plain, (5,), "float32")
    groups = (2, 2)
    jax.block_until_ready(
        _poisoned(network, start, clip(9, (5,), "float32"), num_devices=2, groups=groups)
    )
    jax.effects_barrier()
    for i in range(4):
        assert seen.count(("activation", i, True)) == i
        assert seen.count(("activation", i, False)) == 9 - i
        assert seen.count(("pseudo-gradient", i, True)) == 2 * 3 - i
        assert seen.count(("pseudo-gradient", i, False)) == 9 - 2 * 3 + i


@pytest.mark.usefixtures("quick_compile")
def test_gradients_inside_the_branches_of_a_switch_on_the_device():
    """jax-ml/jax#40823, as this library uses it: `check_vma=False`, the vjp inside the branch.

    What is wrong is `check_vma=True` with a predicate that varies over devices and operands that
    do not, differentiated from outside: JAX 0.10.2 then gives three times the gradient of device 0
    instead of the sum over devices, without a word, unless operands are marked as varying.
    """
    mesh, functions = make_mesh(3), (jnp.sin, jnp.cos, jnp.tanh)
    own, shared = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.asarray([0.3, 0.7])
    spec = PartitionSpec

    def loss(n, own, shared):
        return jnp.sum(functions[n](own * shared))

    def value_and_gradients(n, own, shared):
        value, pull_back = jax.vjp(functools.partial(loss, n), own, shared)
        return value, *pull_back(jnp.ones(()))

    def on_device(own, shared):
        branches = [functools.partial(value_and_gradients, n) for n in range(3)]
        result = run_branch(branches, own[0], shared)
        return jax.tree.map(lambda x: x[None], result)

    def loss_on_device(shared):
        branches = [functools.partial(loss, n, own[n]) for n in range(3)]
        return run_branch(branches, shared)[None]

    def sharded(function, in_specs):
        return jax.jit(
            jax.shard_map(
                function, mesh=mesh, in_specs=in_specs, out_specs=spec("depth"), check_vma=False
            )
        )

    actual = sharded(on_device, (spec("depth"), spec()))(own, shared)
    expected = [value_and_gradients(n, own[n], shared) for n in range(3)]
    for a, *b in zip(actual, *expected, strict=True):
        np.testing.assert_allclose(a, jnp.stack(b), rtol=1e-6)
    from_outside = jax.grad(lambda x: jnp.sum(sharded(loss_on_device, spec())(x)))(shared)
    np.testing.assert_allclose(from_outside, sum(one[2] for one in expected), rtol=1e-6)


# What the compiled program looks like -------------------------------------------------------------


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(("num_devices", "messages"), [(2, 1), (3, 2)])
def test_messages_of_a_step(num_devices, messages):
    """One up and one down, however many modules and leaves; both at once between two devices."""
    network, frame = networks.mixed_network(4), networks.PIXELS
    start = variables(network, frame, "float32")
    frames = clip(7, frame, "float32")

    def run(params, state, frames, targets):
        return step.episode_gradients(
            network, squared_error, params, state, frames, targets, rng=RNG(),
            execution="depth_sharded", mesh=make_mesh(num_devices),
        )  # fmt: skip

    hlo = jax.jit(run).lower(*start, *frames).compile().as_text()
    steps = loop_bodies(hlo)
    assert len(re.findall(r"= [^=]* collective-permute(-start)?\(", steps)) == messages
    assert "all-reduce" not in steps
    assert "all-gather" not in steps


# What cannot run ----------------------------------------------------------------------------------


def _short(**options):
    network = networks.dense_network(3)
    start = variables(network, (5,), "float32")
    frames = clip(options.pop("num_frames", 6), (5,), "float32", options.pop("batch", 4))
    options = {"execution": "depth_sharded"} | options
    if "depth" in options:
        options["mesh"] = make_mesh(options.pop("depth"), data=options.pop("data", 1))
    return episode(network, *start, *frames, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 2, "num_frames": 4}, "2D-1 = 5 computation steps.*at least 5 frames"),
        ({"depth": 4}, "3 modules cannot be spread over 4 devices.*depth axis of 1 to 3"),
        ({"depth": 2, "data": 3}, "a batch of 4 does not divide into data=3.*a multiple of 3"),
        ({}, r"needs mesh=, for example sideways_jax.make_mesh\(depth=2\)"),
        ({"depth": 2, "schedule": "1f1b"}, "schedule='1f1b': rule='sideways' has its own schedule"),
        ({"depth": 2, "rule": "backprop"}, "schedule.*'blocking', 'gpipe'.*'1f1b'"),
        ({"depth": 2, "rule": "backprop", "schedule": "gpip"}, "gpip.*gpipe"),
        ({"depth": 2, "groups": (2, 2)}, r"groups \(2, 2\).*2 sizes.*add up to 3"),
        ({"depth": 2, "groups": (3,)}, r"groups \(3,\).*2 sizes"),
        ({"depth": 2, "execution": "scan"}, "execution=.scan. divides batches, not modules"),
        ({"schedule": "gpipe", "execution": "scan"}, "takes no schedule"),
    ],
)
def test_what_cannot_run_says_what_to_do(options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        _short(**options)


def test_meshes_that_are_none():
    with pytest.raises(ValueError, match=r"axes \('model',\).*needs 'depth'"):
        _short(mesh=jax.make_mesh((2,), ("model",)))
    with pytest.raises(ValueError, match=r"Explicit.*needs Auto: use sideways_jax.make_mesh"):
        _short(mesh=jax.make_mesh((2,), ("depth",), axis_types=(jax.sharding.AxisType.Explicit,)))
    with pytest.raises(ValueError, match=r"\('depth', 'model'\)"):
        _short(mesh=jax.make_mesh((2, 2), ("depth", "model")))
    with pytest.raises(ValueError, match=r"needs 15 devices, there are 8 .*jax_num_cpu_devices=15"):
        make_mesh(5, data=3)
    with pytest.raises(ValueError, match="depth >= 1 and data >= 1"):
        make_mesh(0)


# Who has what -------------------------------------------------------------------------------------


def test_a_report_of_who_has_what():
    network = Network([networks.dense(7), networks.batch_norm(), networks.linear(3)])
    start = variables(network, (5,), "float32")
    frame = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    text = report.report(network, *start, frame, make_mesh(2, data=2), groups=(1, 2))
    lines = [re.sub(r" +", " ", line).strip() for line in text.splitlines()]
    # 5*7+7 = 42 and 7*3+7+7+3 = 38 parameters, held are 7*7+7+7+7; 0 and 14 statistics; 2x7
    # activations sent.
    assert lines[0] == "device modules share params state signals"
    assert re.fullmatch(r"0 0 \d+% 168/280 0/56 56/224", lines[1])
    assert re.fullmatch(r"1 1-2 \d+% 152/280 56/56 168/224", lines[2])
    assert re.fullmatch(r"ideal speedup over one device: 1\.\d+ of 2", lines[3])
    assert lines[4] == "bytes used/held; 46% of what devices hold is padding"
