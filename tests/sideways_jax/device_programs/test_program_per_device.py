"""A program for every device: what one device gives; `test_properties.py` has the random cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import Module, Network, make_mesh, step
from sideways_jax.device_programs import clips, places, schedule, steps
from sideways_jax.rule.schedules import Schedule
from sideways_jax.rule.task import Task
from sideways_jax.stream import PipelinedModel
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import BATCH, assert_close, case, clip, variables

RNG = jax.random.key(sharding.RNG_SEED)


def _shape(frame, dtype="float64"):
    return jax.ShapeDtypeStruct((BATCH, *frame), dtype)


def _devices(tree):
    return {d for x in jax.tree.leaves(tree) for d in x.devices()}


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("rule", "schedule", "mesh"),
    [
        ("sideways", None, {"depth": 3}),
        ("sideways", None, {"depth": 2, "data": 2}),
        ("pipelined_backprop", None, {"depth": 2}),
        ("backprop", "1f1b", {"depth": 3}),
        ("backprop", "gpipe", {"depth": 2}),
    ],
)
def test_dropout_and_statistics_are_those_of_one_device(rule, schedule, mesh):
    """Also with replicas: they share a batch, they do not have batches of their own."""
    network, frame = case("uneven")
    start, (frames, targets) = variables(network, frame), clip(2 * network.depth, frame)
    task = Task(network, squared_error, rule)
    execution = step.ProgramPerDevice(make_mesh(**mesh), schedule=schedule)
    actual = execution.episode(task, *start, frames, targets, RNG, bubble=np.nan)
    expected = sharding.episode(
        network, *start, frames, targets, rng=RNG, rule=rule, execution="scan"
    )
    assert_close(actual._asdict(), expected._asdict(), 1e-10)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_shortcuts_between_modules_in_pipelined_backprop():
    """Their cotangents wait on the device of the receiver; also in one program for all devices."""
    joined = Module(lambda key, x: ((), ()), lambda p, s, x, *, train, rng: (sum(x), s))
    dense, top = networks.dense(5), networks.linear(networks.NUM_OUTPUTS)
    network = Network(
        [dense, dense, networks.chain(joined, dense), networks.chain(joined, top)],
        shortcuts=((0, 2), (-1, 3), (1, 3)),
    )
    start, (frames, targets) = variables(network, (5,)), clip(11, (5,))
    task = Task(network, squared_error, "pipelined_backprop")
    expected = step.Scan().episode(task, *start, frames, targets, None)
    for groups in ((1, 1, 1, 1), (2, 2), (3, 1)):
        for kind in (step.Pipeline, step.ProgramPerDevice):
            for recompute in (True, False):
                execution = kind(make_mesh(len(groups)), groups, recompute=recompute)
                actual = execution.episode(task, *start, frames, targets, None, bubble=np.nan)
                assert_close(tuple(actual.grads), expected.grads, 1e-10)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("update_every", [None, 1])
def test_a_train_state_goes_from_one_device_to_several_and_back(update_every):
    """It has one structure; where its arrays lie is all that differs. Each device has its own."""
    network, frame = case("vectors")
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9), optax.scale(-0.01))
    options = {"update_every": update_every}
    init, on_one = step.make_train_step(network, squared_error, tx, **options)
    on_one = jax.jit(on_one)
    mesh = make_mesh(3)
    init_there, on_three = step.make_train_step(
        network, squared_error, tx, execution="program_per_device", mesh=mesh, **options
    )
    frames, targets = clip(2 * network.depth, frame)
    expected, actual = (f(jax.random.key(0), _shape(frame)) for f in (init, init_there))
    assert_close(_host(actual), _host(expected), 1e-14)
    for number in range(4):
        expected, metrics = on_one(expected, frames, targets)
        if number == 2:  # As from a checkpoint.
            actual = jax.device_put(_host(actual), jax.devices()[0])._replace(rng=expected.rng)
            actual, found = jax.jit(step.make_train_step(network, squared_error, tx, **options)[1])(
                actual, frames, targets
            )
        else:
            if number == 3:
                actual = actual._replace(rng=jax.device_put(actual.rng, jax.devices()[1]))
            before = actual
            actual, found = on_three(actual, frames, targets)
            jax.block_until_ready(before.params)  # Nothing was taken from it.
            groups = places.groups_of(places.places_of(mesh), actual.params)
            for n, group in enumerate(groups):
                there = {mesh.devices.flat[n]}
                assert _devices([actual.params[i] for i in group]) == there
                moments = [actual.opt_state[1].trace[i] for i in group]
                assert _devices(moments) == there
        assert_close(jax.device_get(found), jax.device_get(metrics), 1e-10)
        assert_close(_host(actual), _host(expected), 1e-10)


def _host(train_state):
    return jax.device_get(train_state._replace(rng=()))


@pytest.mark.usefixtures("quick_compile")
def test_a_train_state_is_taken_apart_if_that_is_allowed():
    network, frame = case("vectors", "float32")
    frames, targets = clip(2 * network.depth, frame, "float32")
    execution = step.ProgramPerDevice(make_mesh(2), donate=True)
    for options in ({}, {"update_every": 1}):
        init, train_step = step.make_train_step(
            network, squared_error, optax.sgd(1e-3, momentum=0.9), execution=execution, **options
        )
        before = init(jax.random.key(0), _shape(frame, "float32"))
        after, _ = train_step(before, frames, targets)
        jax.block_until_ready(after)
        assert all(
            x.is_deleted() for x in jax.tree.leaves((before.params, before.opt_state[0].trace))
        )


def test_what_goes_into_a_program_is_refused():
    network, frame = case("vectors", "float32")
    frames, targets = clip(2 * network.depth, frame, "float32")
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1), execution="program_per_device", mesh=make_mesh(2)
    )
    train_state = init(jax.random.key(0), _shape(frame, "float32"))
    with pytest.raises(ValueError, match=r"without jax\.jit.*donate=True"):
        jax.jit(train_step)(train_state, frames, targets)
    with pytest.raises(ValueError, match="needs mesh="):
        step.make_train_step(network, squared_error, optax.sgd(0.1), execution="program_per_device")
    with pytest.raises(ValueError, match="'program_per_device' needs mesh="):
        PipelinedModel(network, (), (), execution="program_per_device")
    with pytest.raises(ValueError, match=r"\('data',\); program_per_device needs 'depth'"):
        step.ProgramPerDevice(jax.sharding.Mesh(jax.devices()[:1], ("data",)))
    with pytest.raises(ValueError, match="set schedule to one of 'blocking', 'gpipe', '1f1b'"):
        step.make_train_step(
            network, squared_error, optax.sgd(0.1), rule="backprop",
            execution="program_per_device", mesh=make_mesh(2),
        )  # fmt: skip
    with pytest.raises(ValueError, match="set execution='scan'"):
        step.make_train_step(
            network, squared_error, optax.sgd(0.1), rule="backprop", schedule="1f1b",
            execution="program_per_device", mesh=make_mesh(2), update_every=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match="do not place 5 modules"):
        step.make_train_step(
            network, squared_error, optax.sgd(0.1), execution="program_per_device",
            mesh=make_mesh(2), groups=(2, 2),
        )  # fmt: skip


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("update_every", [None, 1])
def test_a_train_state_of_something_else_is_refused(update_every):
    """Leaves are handed to devices by number: those of another optimizer would be taken for its."""
    network, frame = case("vectors", "float32")
    frames, targets = clip(2 * network.depth, frame, "float32")
    options, key = {"mesh": make_mesh(2), "update_every": update_every}, jax.random.key(0)

    def make(tx, network=network, execution="program_per_device"):
        return step.make_train_step(network, squared_error, tx, execution=execution, **options)

    def start(*made, **where):
        return jax.eval_shape(make(*made, **where).init, key, _shape(frame, "float32"))

    tx = optax.trace(0.9)
    init, train_step = make(tx)
    lower = Network(network.modules[:-1])
    with pytest.raises(ValueError, match=r"must be a tuple of 5 pytrees.*got 4"):
        train_step(start(tx, lower), frames, targets)
    with pytest.raises(ValueError, match=r"step\.per_module"):
        train_step(start(tx, execution="depth_sharded"), frames, targets)
    train_state = init(key, _shape(frame, "float32"))
    train_state = train_state._replace(opt_state=optax.ScaleByRssState(train_state.params))
    with pytest.raises(ValueError, match=r"opt_state has \.sum_of_squares.* where \.trace"):
        train_step(train_state, frames, targets)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("mesh", [{"depth": 2}, {"depth": 3, "data": 2}, {"depth": 5}])
def test_inference_shows_what_one_device_shows(mesh):
    network, frame = case("vectors")
    start, frames = variables(network, frame), np.asarray(clip(14, frame)[0])
    one = PipelinedModel(network, *start)
    other = PipelinedModel(network, *start, mesh=make_mesh(**mesh), execution="program_per_device")
    resets = np.zeros((len(frames), BATCH), bool)
    resets[3, 1] = resets[9, 2] = resets[10, 2] = True
    for x, reset in zip(frames, resets, strict=True):
        shown = []
        for model in (one, other):
            model.reset(reset)
            output = model.push(x)
            shown.append((None if output is None else np.asarray(output), model.valid))
        (expected, valid), (actual, same) = shown
        np.testing.assert_array_equal(valid, same)
        assert (actual is None) == (expected is None)
        if actual is not None:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)
    expected, actual = one.flush(), other.flush()
    assert len(expected) == len(actual) == network.depth - 1
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("depth", [None, 2])
def test_frames_that_modules_refuse_leave_no_trace(depth):
    network, frame = case("vectors", "float32")
    start = variables(network, frame, "float32")
    model = PipelinedModel(network, *start)
    if depth:
        model = PipelinedModel(
            network, *start, mesh=make_mesh(depth), execution="program_per_device"
        )
    with pytest.raises(ValueError, match="module 0"):
        model.push(np.ones((BATCH, frame[0] + 1), np.float32))
    assert model.push(np.ones((BATCH, *frame), np.float32)) is None


def test_modules_are_found_where_they_are():
    """A module without arrays counts to that below it; what is no division into groups is None."""
    where = places.places_of(make_mesh(2))
    on = [jax.device_put(jnp.ones(2), d) for d in jax.devices()[:3]]
    assert places.groups_of(where, (on[0], (), on[1], ())) == ((0, 1), (2, 3))
    for modules in ((on[0], on[0]), (on[1], on[0]), (on[0], (on[0], on[1])), (on[0], on[2])):
        assert places.groups_of(where, modules) is None


@pytest.mark.parametrize("rule", ["sideways", "backprop"])
def test_signals_that_cannot_be_divided_among_devices(rule):
    """A mean over the batch has no entry for each example."""
    mean = Module(lambda key, x: ((), ()), lambda p, s, x, *, train, rng: ((x, x.mean()), s))
    both = Module(lambda key, x: ((), ()), lambda p, s, x, *, train, rng: (x[0] * x[1], s))
    top = networks.chain(both, networks.linear(networks.NUM_OUTPUTS))
    network = Network([networks.dense(3), mean, top])
    frames = jnp.ones((5, BATCH, 2))
    arguments = *network.init(RNG, frames[0]), frames, jnp.ones((5, networks.NUM_OUTPUTS))
    execution = step.ProgramPerDevice(
        make_mesh(2, data=2), schedule="1f1b" if rule == "backprop" else None
    )
    with pytest.raises(ValueError, match=r"module 1 \(0-based\)\[1\] has the shape \(\)"):
        execution.episode(Task(network, squared_error, rule), *arguments, None)


@pytest.mark.usefixtures("quick_compile")
def test_a_forward_pass_takes_over_what_is_shown():
    """A copy of all outputs at every step would take K^2."""
    network, frame = case("vectors", "float32")
    frames, targets = clip(2 * network.depth, frame, "float32")
    shapes = clips.closed(*variables(network, frame, "float32"), frames, targets, RNG)
    options = clips.Options(make_mesh(1), None, Schedule("1f1b"), False, 0.0)
    task = Task(network, squared_error, "backprop")
    plan = clips.make_programs(task, options, shapes).plan
    stages = schedule.make_stages(plan, len(frames), keep_outputs=True)
    carry = stages.start[0](variables(network, frame, "float32")[1])
    moves = schedule._Moves(carry.step, carry.state, carry.shown)
    (given,) = steps.give(plan, frames, targets, None, RNG)
    params = variables(network, frame, "float32")[0]
    jax.block_until_ready(stages.forward[0](params, moves, {}, given))
    assert carry.shown.outputs.is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, given)))
