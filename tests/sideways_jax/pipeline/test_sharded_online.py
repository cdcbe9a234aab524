"""Online learning on a mesh is online learning on one device, and goes on where that left off."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import Network, make_mesh, step
from sideways_jax.rule.task import Task
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.comparison import largest_difference
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import BATCH, assert_close, case, loop_bodies, variables

EXACT = 1e-10
CALL = 12  # frames in a call of `train_step`


def _optimizer():
    return optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.01, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.sgd(0.05, momentum=0.9),
    )


def _metrics(output, target):
    return {"distance": jnp.mean(jnp.abs(output - target))}


def _resets():
    """Stream 0 goes on, others are cut short or run full; at one step all start again."""
    resets = np.zeros((3 * CALL, BATCH), bool)
    resets[[0, 4, 5, 13], 1] = True
    resets[[7, 27], 2] = True
    resets[[9, 10, 11, 12], 3] = True
    resets[18] = True
    return resets


class _Run:
    """One execution: a jitted train step, on states with a pytree for every module."""

    def __init__(self, network, frame, mesh=None, groups=None, dtype="float64", **options):
        options = {"update_every": 1, "target": "stream"} | options
        if mesh is not None:
            mesh = make_mesh(**mesh)
            options |= {"execution": "depth_sharded", "mesh": mesh, "groups": groups}
        tx = _optimizer()
        self.init, train_step = step.make_train_step(
            network, squared_error, tx, metrics_fn=_metrics, with_outputs=True, **options
        )
        self.train_step = jax.jit(train_step, donate_argnums=0)
        self.to_modules = self.from_modules = lambda train_state: train_state
        self.shape = jax.ShapeDtypeStruct((BATCH, *frame), dtype)
        self.target = jax.ShapeDtypeStruct((BATCH, networks.NUM_OUTPUTS), dtype)
        if mesh is not None:
            self.to_modules, self.from_modules = step.per_module(
                network, tx, mesh, self.shape, groups
            )

    def start(self, params, state):
        start = self.init(jax.random.key(3), self.shape, self.target)
        return jax.device_get(_bits(start._replace(params=params, state=state)))

    def train(self, saved, frames, targets, reset=None):
        """From a state in host memory to the next, with metrics and outputs."""
        saved = saved._replace(rng=jax.random.wrap_key_data(jnp.asarray(saved.rng)))
        train_state = jax.tree.map(jnp.asarray, saved)
        train_state, *shown = self.train_step(
            self.from_modules(train_state), frames, targets, reset
        )
        return jax.device_get((_bits(self.to_modules(train_state)), *shown))


def _bits(train_state):
    return train_state._replace(rng=jax.random.key_data(train_state.rng))


def _calls(frame):
    """Frames, targets and resets of three calls."""
    clip = (*sharding.clip(3 * CALL, frame), _resets())
    return [tuple(x[n : n + CALL] for x in clip) for n in range(0, 3 * CALL, CALL)]


@functools.cache
def _expected(name, update_every, target):
    """Three calls on one device: the run, and what there is after each."""
    network, frame = case(name)
    run = _Run(network, frame, update_every=update_every, target=target)
    results = [(run.start(*variables(network, frame)),)]
    for call in _calls(frame):
        results.append(run.train(results[-1][0], *call))
    return run, results


def _assert_carried_on(name, mesh, groups=None, *, sharded=None, update_every=1, target="stream"):
    """The second of three calls on a mesh, the others on one device, is nothing but the three."""
    one, results = _expected(name, update_every, target)
    network, frame = case(sharded or name)
    run = _Run(network, frame, mesh, groups, update_every=update_every, target=target)
    _, second, third = _calls(frame)
    after = run.train(results[1][0], *second)
    assert_close(after, results[2], EXACT)
    assert_close(one.train(after[0], *third), results[3], EXACT)
    before, now = (results[n][0].params for n in (1, 2))
    for module in zip(before, now, strict=True):
        assert not jax.tree.leaves(module) or largest_difference(*module) > 1e-3
    assert (results[2][2].frames < 0).any()


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(("mesh", "groups"), [({"depth": 2}, (4, 1)), ({"depth": 5}, None)])
def test_a_stream_goes_on_on_a_mesh_and_back(mesh, groups):
    _assert_carried_on("vectors", mesh, groups, update_every=3, target="origin")


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({"depth": 1}, marks=pytest.mark.full),
        {"depth": 3},
        {"depth": 2, "data": 2},
    ],
)
def test_updates_at_every_step(mesh):
    """With replicas streams end on one and go on on the other; statistics are of all of them."""
    _assert_carried_on("normalised", mesh, sharded="data" in mesh and "normalised, reduced")


@pytest.mark.full
@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("num_devices", [1, 2, 3, "D"])
@pytest.mark.parametrize(("update_every", "target"), [(1, "stream"), (4, "origin")])
@pytest.mark.parametrize("name", ["simple_cnn", "vectors"])
def test_any_number_of_devices(name, num_devices, update_every, target):
    depth = case(name).network.depth if num_devices == "D" else num_devices
    _assert_carried_on(name, {"depth": depth}, update_every=update_every, target=target)


@pytest.mark.full
@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("num_devices", [1, 2, 3])
def test_replicas_of_any_number_of_devices(num_devices):
    _assert_carried_on(
        "normalised", {"depth": num_devices, "data": 2}, sharded="normalised, reduced",
        update_every=3, target="origin",
    )  # fmt: skip


@pytest.mark.usefixtures("x64", "quick_compile")
def test_counters_of_replicas_agree():
    """A state moves only when no example of the whole batch is a bubble, on any replica."""
    last = networks.chain(networks.counter(), networks.linear(networks.NUM_OUTPUTS))
    network = Network([networks.counter(), networks.dense(4), last])
    run = _Run(network, (5,), {"depth": 2, "data": 2}, update_every=2)
    call, *_ = _calls((5,))
    start = run.init(jax.random.key(3), run.shape, run.target)
    after, *_ = run.train_step(start, *call)
    age = np.full(BATCH, -1)  # Steps since the first frame of a stream.
    complete = np.zeros(3, int)
    for reset in call[2]:
        age = np.where(reset, 0, age + 1)
        complete += (age.min() >= np.arange(3)).astype(int)
    counted = [int(n) for n in jax.tree.leaves(run.to_modules(after).state)]
    assert counted == [complete[0], complete[2]] == [CALL, 2]


@pytest.mark.usefixtures("x64", "quick_compile")
def test_a_run_starts_as_on_one_device():
    network, frame = networks.batch_norm_network(3), (5,)
    expected, many = (_Run(network, frame, mesh, target="origin") for mesh in (None, {"depth": 2}))
    start = many.init(jax.random.key(3), many.shape, many.target)
    for held in jax.tree.leaves(start.in_flight.signals):
        assert {piece.data.shape[:2] for piece in held.addressable_shards} == {(1, 1)}
    expected = expected.init(jax.random.key(3), many.shape, many.target)
    assert_close(many.to_modules(start), expected, 1e-12)


# What must have no effect -------------------------------------------------------------------------


@pytest.mark.usefixtures("x64", "quick_compile")
def test_nothing_of_the_stream_before_leaks():
    network, frame = networks.dense_network(4), (5,)
    mesh, groups = make_mesh(3), (2, 1, 1)
    init, train_step = step.Pipeline(mesh, groups).stream_training(
        Task(network, squared_error, target="origin"), _optimizer(),
        update_every=2, with_outputs=True, bubble=jnp.nan,
    )  # fmt: skip
    train_step = jax.jit(train_step)
    first, (frames, targets, _), _ = _calls(frame)
    to_modules, from_modules = step.per_module(network, _optimizer(), mesh, frames[0], groups)
    train_state, *_ = train_step(init(jax.random.key(0), frames[0], targets[0]), *first)
    modules = to_modules(train_state)

    def poison(x):
        return x.at[1].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    in_flight = jax.tree.map(poison, modules.in_flight)
    poisoned = from_modules(modules._replace(in_flight=in_flight))
    reset = np.zeros((CALL, BATCH), bool)
    reset[0, 1] = True
    expected, actual = (train_step(one, frames, targets, reset) for one in (
        train_state, poisoned))  # fmt: skip
    assert_close(to_modules(actual[0]).params, to_modules(expected[0]).params, 0)
    assert_close(actual[1:], expected[1:], 0)
    # Without the reset it does get through: the poison was there.
    leaked, *_ = train_step(poisoned, frames, targets, np.zeros_like(reset))
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(to_modules(leaked).params))
    assert any(np.isnan(x).any() for x in jax.tree.leaves(expected[0].in_flight.signals))


# What the compiled program looks like -------------------------------------------------------------


@pytest.mark.usefixtures("quick_compile")
def test_one_program_with_two_messages_a_step():
    run = _Run(networks.dense_network(4), (5,), {"depth": 3}, dtype="float32", update_every=4)
    frames, targets = sharding.clip(8, (5,), "float32")
    train_state = run.init(jax.random.key(0), frames[0], targets[0])
    hlo = run.train_step.lower(train_state, frames, targets).compile().as_text()
    assert len(re.findall(r"= [^=]* collective-permute(-start)?\(", loop_bodies(hlo))) == 2
    assert "all-gather" not in hlo
    for _ in range(2):  # From `init`, and from the call before: both lie in the same way.
        train_state, *_ = run.train_step(train_state, frames, targets)
    assert run.train_step._cache_size() == 1


# What cannot run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "time_parallel"}, "set execution='scan' or 'depth_sharded'"),
        ({"execution": "time_parallel", "rule": "backprop"}, "set execution='scan'"),
        (
            {"rule": "backprop", "update_every": 2},
            "one frame of 2D-1 = 3.*set update_every=1",
        ),
        (
            {"rule": "backprop", "execution": "depth_sharded", "schedule": "1f1b"},
            "is for one device, set execution='scan'",
        ),
        ({"update_every": 0}, "update_every=0: give None or a number of at least 1"),
    ],
)
def test_where_weights_cannot_change_between_steps(options, message):
    if options.get("execution") == "depth_sharded":
        options = options | {"mesh": make_mesh(2)}
    with pytest.raises(ValueError, match=message):
        step.make_train_step(
            networks.dense_network(2), squared_error, optax.sgd(1.0),
            **{"update_every": 1, **options},
        )  # fmt: skip


@pytest.mark.usefixtures("quick_compile")
def test_mistakes():
    network = networks.dense_network(2)
    frames, targets = sharding.clip(7, (5,), "float32")
    run = _Run(network, (5,), {"depth": 2}, dtype="float32", update_every=3)
    start = run.init(jax.random.key(0), frames[0], targets[0])
    with pytest.raises(ValueError, match=r"7 frames do not divide .* multiple of 3"):
        run.train_step(start, frames, targets)
    with pytest.raises(ValueError, match=r"nothing in flight.*make it with `init`"):
        run.train_step(start._replace(in_flight=()), frames[:6], targets[:6])
    late = _Run(network, (5,), {"depth": 2}, dtype="float32", target="origin")
    with pytest.raises(ValueError, match=r"call init\(key, frame, target\)"):
        late.init(jax.random.key(0), frames[0])
