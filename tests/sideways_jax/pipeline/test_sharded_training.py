"""Training on a mesh: the updates are those of one device, and can be carried on anywhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import make_mesh, step
from sideways_jax.devices import layout
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import BATCH, TOLERANCE, assert_close, case, variables

UPDATES = 10


def _optimizer():
    return optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.01, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.sgd(0.05, momentum=0.9),
    )


def _metrics(output, target):
    return {"largest": jnp.max(output), "distance": jnp.mean(jnp.abs(output - target))}


def _clips(num_frames, frame, dtype, updates):
    shape = (updates, num_frames, BATCH)
    frames = sharding.draw((*shape, *frame), dtype, 1)
    return frames, sharding.draw((*shape, networks.NUM_OUTPUTS), dtype, 2)


class _Run:
    """Training of one case on one execution: jitted functions on states with a pytree a module."""

    def __init__(self, network, frame, dtype, groups=None, mesh=None, **options):
        tx = _optimizer()
        if mesh is not None:
            options |= {"mesh": make_mesh(**mesh), "execution": "depth_sharded", "groups": groups}
        init, train_step = step.make_train_step(
            network, squared_error, tx, metrics_fn=_metrics, **options
        )
        self.train_step = jax.jit(train_step, donate_argnums=0)
        self.to_modules = self.from_modules = lambda train_state: train_state
        shape = jax.ShapeDtypeStruct((BATCH, *frame), dtype)
        self.init = lambda: init(jax.random.key(3), shape)
        if mesh is not None:
            self.to_modules, self.from_modules = step.per_module(
                network, tx, options["mesh"], shape, groups
            )

    def start(self, params, state):
        """A state with these values, so that no generator of random numbers is compiled."""
        opt_state = _optimizer().init(params)
        first = jnp.zeros((), jnp.int32)
        copy = jax.tree.map(jnp.copy, (params, state))  # The train step takes its argument apart.
        return step.TrainState(first, *copy, opt_state, (), jax.random.key(sharding.RNG_SEED))

    def train(self, train_state, frames, targets):
        """The state (in host memory) after these clips, and the metrics of every update."""
        if not jnp.issubdtype(train_state.rng.dtype, jax.dtypes.prng_key):  # As it was saved.
            train_state = train_state._replace(rng=jax.random.wrap_key_data(train_state.rng))
        train_state, metrics = self.from_modules(train_state), []
        for one in zip(frames, targets, strict=True):
            train_state, values = self.train_step(train_state, *one)
            metrics.append(values)
        train_state = self.to_modules(train_state)
        train_state = train_state._replace(rng=jax.random.key_data(train_state.rng))
        return jax.device_get((train_state, metrics))


@functools.cache
def _expected(name, dtype, num_frames, rule, target):
    network, frame = case(name, dtype)
    run = _Run(network, frame, dtype, rule=rule, target=target)
    start = run.start(*variables(network, frame, dtype))
    return run.train(start, *_clips(num_frames, frame, dtype, UPDATES))


def _assert_ten_updates_agree(name, dtype, mesh, *, rule, target="stream", sharded=None, **options):
    network, frame = case(sharded or name, dtype)
    num_frames = 3 if rule == "backprop" else 2 * network.depth
    expected = _expected(name, dtype, num_frames, rule, target)
    run = _Run(network, frame, dtype, mesh=mesh, rule=rule, target=target, **options)
    start = run.start(*variables(network, frame, dtype))
    actual = run.train(start, *_clips(num_frames, frame, dtype, UPDATES))
    assert_close(actual, expected, TOLERANCE[dtype])
    # There is something to see: parameters have moved far beyond the tolerance.
    moved = np.abs(jax.tree.leaves(start.params)[0] - jax.tree.leaves(expected[0].params)[0])
    assert moved.max() > 1e-3


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("name", "mesh", "target"),
    [
        pytest.param("simple_cnn", {"depth": 6}, "stream", marks=pytest.mark.full),
        pytest.param("vgg8", {"depth": 8}, "stream", marks=pytest.mark.full),
        ("uneven", {"depth": 7}, "origin"),
    ],
)
def test_ten_updates_are_those_of_scan(name, mesh, target):
    _assert_ten_updates_agree(name, "float64", mesh, rule="sideways", target=target)


@pytest.mark.full
@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("name", ["simple_cnn", "vgg8", "uneven"])
def test_ten_updates_on_any_number_of_devices(name, num_devices, dtype):
    _assert_ten_updates_agree(name, dtype, {"depth": num_devices}, rule="sideways")


@pytest.mark.full
@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("num_devices", [1, 2, 3, 4])
def test_ten_updates_of_a_normalised_network_with_replicas(num_devices):
    _assert_ten_updates_agree(
        "vgg8, sure", "float64", {"depth": num_devices, "data": 2}, rule="sideways",
        sharded="vgg8, reduced",
    )  # fmt: skip


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("rule", "mesh", "schedule"),
    [("sideways", {"depth": 2}, None), ("backprop", {"depth": 3, "data": 2}, "1f1b")],
)
def test_ten_updates_as_on_tpus(monkeypatch, rule, mesh, schedule):
    """Sums go through branches there, and updates take the place of sums."""
    monkeypatch.setattr(layout, "changes_in_place", lambda *_: True)
    name = "vectors" if schedule is None else "normalised"
    sharded = None if schedule is None else "normalised, reduced"
    _assert_ten_updates_agree(
        name, "float64", mesh, rule=rule, sharded=sharded, schedule=schedule
    )  # fmt: skip


@pytest.mark.usefixtures("quick_compile")
def test_ten_updates_in_single_precision():
    _assert_ten_updates_agree("vectors", "float32", {"depth": 3}, rule="sideways")


@pytest.mark.usefixtures("x64", "quick_compile")
def test_ten_updates_with_replicas():
    _assert_ten_updates_agree(
        "normalised", "float64", {"depth": 3, "data": 2}, rule="sideways",
        sharded="normalised, reduced",
    )  # fmt: skip


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("schedule", "mesh"), [("1f1b", {"depth": 3}), ("gpipe", {"depth": 2, "data": 2})]
)
def test_ten_updates_of_backprop(schedule, mesh):
    options = {"sharded": "normalised, reduced"} if "data" in mesh else {}
    _assert_ten_updates_agree(
        "normalised", "float64", mesh, rule="backprop", schedule=schedule, **options
    )


@pytest.mark.usefixtures("x64", "quick_compile")
def test_a_run_starts_with_the_parameters_of_one_device():
    network, frame = networks.batch_norm_network(3), (5,)
    one = _Run(network, frame, "float64").init()
    many = _Run(network, frame, "float64", mesh={"depth": 2})
    assert_close(many.to_modules(many.init()), one, 1e-12)
    for held in jax.tree.leaves(many.init().params):
        assert held.shape[0] == 2
        assert {shard.data.shape[0] for shard in held.addressable_shards} == {1}


# Saved and carried on -----------------------------------------------------------------------------


@functools.cache
def _uninterrupted():
    """Twelve updates on four devices, and what was saved after two of them."""
    network, frame = case("vectors")
    run = _Run(network, frame, "float64", mesh={"depth": 4})
    frames, targets = _clips(10, frame, "float64", 2 + UPDATES)
    saved, _ = run.train(run.start(*variables(network, frame)), frames[:2], targets[:2])
    rest = frames[2:], targets[2:]
    return saved, rest, run.train(saved, *rest)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"depth": 2}, {"groups": (3, 2)}),
        ({"depth": 1}, {}),
        (None, {"execution": "scan"}),
        (None, {"execution": "time_parallel"}),
    ],
)
def test_saved_on_four_devices_and_carried_on(mesh, options):
    saved, rest, expected = _uninterrupted()
    assert int(saved.step) == 2
    network, frame = case("vectors")
    run = _Run(network, frame, "float64", mesh=mesh, **options)
    actual = run.train(saved, *rest)
    assert_close(actual, expected, TOLERANCE["float64"])
    assert int(actual[0].step) == 12


@pytest.mark.usefixtures("x64", "quick_compile")
def test_to_modules_and_back():
    network, frame = case("normalised")
    run = _Run(network, frame, "float64", mesh={"depth": 2})
    saved = run.start(*variables(network, frame))
    saved = saved._replace(opt_state=jax.tree.map(lambda x: x + 1, saved.opt_state))
    assert_close(run.to_modules(run.from_modules(saved)), saved, 0)


@pytest.mark.usefixtures("quick_compile")
def test_a_state_that_lies_in_another_way():
    network, frame = case("normalised", "float32")
    clip = [x[0] for x in _clips(5, frame, "float32", 1)]
    run = _Run(network, frame, "float32", mesh={"depth": 2}, groups=(1, 2))
    other = _Run(network, frame, "float32", mesh={"depth": 2}, groups=(2, 1))
    start = run.start(*variables(network, frame, "float32"))
    with pytest.raises(ValueError, match=r"params .* groups \(\(0, 1\), \(2,\)\).*per_module"):
        other.train_step(run.from_modules(start), *clip)
    with pytest.raises(ValueError, match="the params of this train state"):
        other.train_step(start, *clip)


@pytest.mark.usefixtures("quick_compile")
def test_an_optimizer_that_would_differ_is_refused():
    network, frame = case("normalised", "float32")
    tx = optax.flatten(optax.sgd(0.1, momentum=0.9))
    init, _ = step.make_train_step(
        network, squared_error, tx, execution="depth_sharded", mesh=make_mesh(2)
    )
    with pytest.raises(ValueError, match=r"optimizer .* arrays of modules \[0, 1, 2\] meet"):
        init(jax.random.key(0), jax.ShapeDtypeStruct((BATCH, *frame), jnp.float32))


# What the compiled program looks like -------------------------------------------------------------


def test_no_device_holds_the_gradients_of_all_modules():
    network = networks.Network([networks.dense(16), networks.dense(20), networks.linear(3)])
    params, state = variables(network, (10,), "float32")
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(module)) for module in params]
    run = _Run(network, (10,), "float32", mesh={"depth": 3})
    train_state = run.from_modules(run.start(params, state))
    clip = [x[0] for x in _clips(5, (10,), "float32", 1)]
    hlo = run.train_step.lower(train_state, *clip).compile().as_text()
    arrays = {
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"f32\[([\d,]+)\]", hlo)
    }
    held = [slot[0].size for slot in train_state.params.slots.values()]
    # What every device holds: the largest matrix and bias, and a slot for 20x3, which is too long
    # for that of 16x20.
    assert sorted(held) == [20, 20 * 3, 16 * 20]
    assert max(held) in arrays
    assert max(arrays) < sum(sizes)
    assert "all-gather" not in hlo
