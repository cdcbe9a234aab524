"""Shortcuts between modules: what cannot be, and all executions against the literal loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import Module, Network, make_mesh, step
from sideways_jax.pipeline.execution import Pipeline
from sideways_jax.rule.rule import empty_fifos
from sideways_jax.rule.task import Task
from sideways_jax.stream import PipelinedModel
from tests.sideways_jax import reference
from tests.sideways_jax.networks import constant_clip, random_clip, squared_error
from tests.sideways_jax.sharding import assert_close

WIDTH = 5  # of frames and of every signal
ALL_OF_5 = tuple((j, i) for j in range(-1, 4) for i in range(j + 2, 5))
NETWORKS = {
    "the frame": (3, ((-1, 2),)),
    "all": (5, ALL_OF_5),
    "over devices": (6, ((-1, 3), (0, 4), (2, 5), (0, 5))),
}


def _mixing():
    """`tanh` of a linear map of everything that it hears, each with weights of its own."""

    def init(key, x):
        parts = jax.tree.leaves(x)
        keys = jax.random.split(key, len(parts))
        weights = [
            0.5 * jax.random.normal(k, (part.shape[-1], WIDTH), part.dtype)
            for k, part in zip(keys, parts, strict=True)
        ]
        return weights, ()

    def apply(params, state, x, *, train, rng):
        parts = jax.tree.leaves(x)
        return jnp.tanh(sum(part @ w for part, w in zip(parts, params, strict=True))), state

    return Module(init, apply)


def _start(name, num_frames, clip=random_clip):
    depth, shortcuts = NETWORKS[name]
    network = Network([_mixing()] * depth, shortcuts)
    frames, _ = clip(num_frames)
    targets = clip(num_frames, seed=1)[0]
    variables = network.init(jax.random.key(0), jnp.asarray(frames[0]))
    return network, variables, frames, targets


EXPECTED = {
    "sideways": reference.sideways_episode,
    "pipelined_backprop": reference.pipelined_episode,
    "backprop": reference.backprop_episode,
}


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("rule", EXPECTED)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_execution_is_the_literal_loop(name, rule):
    network, variables, *clip = _start(name, 2 * NETWORKS[name][0] + 2)
    expected = EXPECTED[rule](
        network, squared_error, *variables, *clip, target="origin", train=True, rng=None
    )
    task = Task(network, squared_error, rule, "origin")
    schedule = {"schedule": "1f1b"} if rule == "backprop" else {}
    found = [
        step.episode_gradients(
            network,
            squared_error,
            *variables,
            *clip,
            rule=rule,
            execution=execution,
            target="origin",
        )
        for execution in ("scan", "time_parallel")
    ]
    if rule != "pipelined_backprop" or name == "the frame":
        found += [
            Pipeline(make_mesh(devices), **schedule).episode(
                task, *variables, *clip, None, bubble=jnp.nan
            )
            for devices in (2, 3)
        ]
    for one in found:
        np.testing.assert_array_equal(one.num_grads, expected.num_grads)
        assert_close((one.grads, one.loss), (expected.grads, expected.loss), 1e-12)
        assert_close(one.outputs, expected.outputs, 1e-12)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_constant_frames_give_backprop():
    network, variables, *clip = _start("all", 14, constant_clip)
    one, other = (
        step.episode_gradients(network, squared_error, *variables, *clip, rule=rule)
        for rule in ("sideways", "backprop")
    )
    assert_close(one.grads, other.grads, 1e-12)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("devices", [None, 2])
def test_pipelined_inference_gives_newer_frames_to_shortcuts(devices):
    """Module 2 of 3 hears the frame of now with what frame t-2 made of the main path.

    So there is no output that would need a frame after the last: the shortest way is one module.
    """
    network, (params, state), frames, _ = _start("the frame", 6)
    mesh = None if devices is None else make_mesh(devices)
    model = PipelinedModel(network, params, state, mesh=mesh)
    outputs = [model.push(frame) for frame in frames]
    assert outputs[:2] == [None, None]
    assert model.flush() == []
    for t in range(2, 6):
        h = frames[t - 2]
        for i in (0, 1):
            h, _ = network.modules[i].apply(params[i], (), h, train=False, rng=None)
        both = (h, frames[t])
        expected, _ = network.modules[2].apply(params[2], (), both, train=False, rng=None)
        np.testing.assert_allclose(outputs[t], expected, rtol=1e-12)


@pytest.mark.usefixtures("quick_compile")
def test_an_input_waits_for_all_of_its_parts():
    """When no frame enters any more, a module that hears the frame has nothing to work on."""
    network, variables, frames, targets = _start("the frame", 4)
    in_flight = step.init_in_flight(network, *variables, frames[0])
    for t in range(4):
        one = step.computation_step(
            network, squared_error, *variables, in_flight, frames[t], targets[t],
            t if t < 3 else -1,
        )  # fmt: skip
        in_flight = one.in_flight
    np.testing.assert_array_equal(one.frames, [-1, 2, -1])
    assert not one.valid


@pytest.mark.parametrize(
    ("shortcut", "message"),
    [
        ((2, 0), r"\(2, 0\) does not lead upwards.*at least source \+ 2"),
        ((1, 1), "does not lead upwards"),
        ((0, 1), "is the main path: module 1 hears module 0"),
        ((-1, 0), "module 0 hears the frame"),
        ((1, 4), "not there: the modules are 0 to 3"),
        ((-2, 3), "not there.*the frame.* is -1"),
        ((0.5, 2), "pairs of integers"),
        (3, "pairs of integers"),
        ((0, 1, 2), "pairs of integers"),
        ((False, 2), "pairs of integers"),
    ],
)
def test_shortcuts_that_cannot_be(shortcut, message):
    with pytest.raises(ValueError, match=message):
        Network([_mixing()] * 4, [shortcut])


@pytest.mark.parametrize("shortcuts", [None, 3])
def test_shortcuts_that_are_no_sequence(shortcuts):
    with pytest.raises(ValueError, match="give a sequence of pairs"):
        Network([_mixing()] * 4, shortcuts)


def test_shortcuts_are_plain_numbers():
    """A network is a key to compiled programs."""
    network = Network([_mixing()] * 3, np.array([[0, 2]]))
    assert network.shortcuts == ((0, 2),) and hash(network)


def test_a_shortcut_given_twice():
    with pytest.raises(ValueError, match=r"\(0, 2\) is there twice"):
        Network([_mixing()] * 4, [(0, 2), (1, 3), (0, 2)])


def test_signals_that_do_not_merge_name_the_module_and_its_sources():
    def add(params, state, x, *, train, rng):
        return sum(x), state

    narrow = Module(lambda key, x: ((), ()), lambda p, s, x, *, train, rng: (x[:, :2], s))
    network = Network([narrow, _mixing(), Module(lambda key, x: ((), ()), add)], shortcuts=[(0, 2)])
    with pytest.raises(ValueError, match=r"module 2 .* \(the output of module 1, .* module 0\)"):
        network.init(jax.random.key(0), jnp.zeros((3, WIDTH)))


@pytest.mark.usefixtures("quick_compile")
def test_flush_gives_the_outputs_that_all_frames_came_for():
    """Of 5 modules, 3 on the shortest way: two outputs after the last frame, by a longer stream."""
    network = Network([_mixing()] * 5, [(-1, 1), (1, 3)])
    assert network.wiring.shortest_path == 3
    frames, _ = random_clip(10)
    variables = network.init(jax.random.key(0), jnp.asarray(frames[0]))
    longer, shorter = (PipelinedModel(network, *variables) for _ in range(2))
    expected = [longer.push(frame) for frame in frames]
    for frame in frames[:8]:
        shorter.push(frame)
    left = shorter.flush()
    assert len(left) == 2
    np.testing.assert_array_equal(left, expected[8:])


def _autodiff(network, params, frames, targets):
    """The gradients of the delayed network, unrolled, with parameters of their own for each frame.

    By module, for the frames of the main path, `[K, ...]`.
    """
    num_frames, depth = len(frames), network.depth

    def total(theta):
        sent, losses = {}, []
        for t in range(num_frames):
            sent = sent | {(-1, t - 1): frames[t]}
            for i in range(depth):
                heard = tuple(sent.get((j, t - 1)) for j in network.wiring.sources[i])
                if t < i or any(x is None for x in heard):
                    continue
                of_frame = jax.tree.map(lambda p, f=t - i: p[f], theta[i])
                x = heard[0] if len(heard) == 1 else heard
                sent[i, t], _ = network.modules[i].apply(of_frame, (), x, train=True, rng=None)
            if t >= depth - 1:
                losses.append(squared_error(sent[depth - 1, t], targets[t]))
        return sum(losses)

    theta = [jax.tree.map(lambda p: jnp.stack([p] * num_frames), one) for one in params]
    return jax.grad(total)(theta)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("name", ["all", "the frame"])
def test_pipelined_backprop_is_exact(name):
    """By nothing but `jax.grad`: the mean over the frames whose cotangents come back."""
    network, (params, state), *clip = _start(name, 2 * NETWORKS[name][0] + 2)
    grads = _autodiff(network, params, *map(jnp.asarray, clip))
    one = step.episode_gradients(
        network, squared_error, params, state, *clip, rule="pipelined_backprop"
    )
    for i, gamma in enumerate(one.num_grads):
        expected = jax.tree.map(lambda g, n=int(gamma): g[:n].mean(0), grads[i])
        assert_close(one.grads[i], expected, 1e-12)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_what_is_kept_of_a_stream_does_not_reach_the_next():
    """Streams of 1 to 14 frames, with NaN in buffers that nothing was written to."""
    num_frames = 48
    network, _, frames, targets = _start("all", num_frames)
    reset = np.random.default_rng(0).random((num_frames, frames.shape[1])) < 0.15
    reset[20:, 0] = False
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1), rule="pipelined_backprop", update_every=1
    )
    start = init(jax.random.key(0), jnp.asarray(frames[0]))
    fifos = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.ndim else x, start.in_flight.fifos
    )
    expected = reference.pipelined_stream(
        network, squared_error, start.params, start.state, frames, targets, reset,
        target="stream", update_every=1, optimizer=reference.Optimizer(rate=0.1), rng=start.rng,
    )  # fmt: skip
    start = start._replace(in_flight=start.in_flight._replace(fifos=fifos))
    learnt, _ = train_step(start, frames, targets, reset)
    assert_close(learnt.params, expected.params, 1e-10)


def test_a_buffer_goes_round_whatever_the_others_do():
    """Fourteen buffers of 1, 2, ... steps: their common multiple is beyond int32."""
    depth = 15
    network = Network([_mixing()] * depth, [(j, depth - 1) for j in range(depth - 2)])
    frame = jnp.zeros((1, WIDTH))
    variables = jax.eval_shape(network.init, jax.random.key(0), frame)
    fifos = empty_fifos(network, *variables, frame)
    assert sorted(fifos[-1].places) == list(range(2, 2 * depth - 2, 2))


@pytest.mark.parametrize(
    ("execution", "options", "message"),
    [
        (step.Scan(recompute=False), {"rule": "sideways"}, "only rule='pipelined_backprop' keeps"),
        (step.Scan(recompute=False), {"update_every": 1}, "residuals are of the weights of then"),
        (Pipeline(make_mesh(2), recompute=False), {"update_every": 1}, "residuals are of the"),
        (Pipeline(make_mesh(2), schedule="1f1b"), {}, "has its own schedule"),
    ],
)
def test_pipelined_backprop_refuses(execution, options, message):
    network, *_ = _start("over devices", 3)
    options = {"rule": "pipelined_backprop"} | options
    with pytest.raises(ValueError, match=message):
        step.make_train_step(network, squared_error, optax.sgd(0.1), execution=execution, **options)
