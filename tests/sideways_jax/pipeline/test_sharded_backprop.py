"""Schedules of exact backprop on many devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import make_mesh
from sideways_jax.pipeline.execution import Pipeline
from sideways_jax.rule.schedules import SCHEDULES
from sideways_jax.rule.task import Task
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import TOLERANCE, assert_close, case, clip, episode, variables

RNG = functools.partial(jax.random.key, sharding.RNG_SEED)


@functools.cache
def _gradients_of_the_mean_loss(num_frames):
    """What JAX says about the network as a whole: it, its variables, frames, the loss, gradients.

    One frame is compiled; the mean is NumPy.
    """
    network = networks.dense_network(4)
    start = variables(network, (5,))
    frames = clip(num_frames, (5,))

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradients(params, frame, target):
        return squared_error(network.apply(params, start[1], frame, train=True)[0], target)

    losses = [loss_and_gradients(start[0], *one) for one in zip(*frames, strict=True)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *losses)
    return network, start, frames, *mean


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("schedule", "num_devices", "num_frames", "recompute", "groups"),
    [
        ("blocking", 4, 1, False, None),
        ("blocking", 3, 3, True, (1, 2, 1)),
        ("gpipe", 3, 1, True, None),
        ("gpipe", 4, 2, True, None),
        ("gpipe", 3, 9, False, (1, 1, 2)),
        ("1f1b", 1, 3, True, None),
        ("1f1b", 4, 1, False, None),
        ("1f1b", 3, 3, False, None),
        ("1f1b", 2, 9, True, (3, 1)),
        ("1f1b", 4, 12, False, None),
    ],
)
def test_a_schedule_gives_the_gradient(schedule, num_devices, num_frames, recompute, groups):
    network, start, frames, loss, grads = _gradients_of_the_mean_loss(num_frames)
    actual = episode(
        network, *start, *frames, rule="backprop", schedule=schedule, groups=groups,
        recompute=recompute, execution="depth_sharded", mesh=make_mesh(num_devices),
    )  # fmt: skip
    assert_close(actual.grads, grads, TOLERANCE["float64"])
    assert_close(actual.loss, loss, TOLERANCE["float64"])


@functools.cache
def _expected(name, num_frames):
    network, frame = case(name)
    start = variables(network, frame)
    frames = clip(num_frames, frame)
    return start, frames, episode(network, *start, *frames, rng=RNG(), rule="backprop")


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("name", "schedule", "mesh", "recompute"),
    [
        ("vectors", "1f1b", {"depth": 3}, False),
        ("vectors", "gpipe", {"depth": 5}, True),
        ("vectors", "blocking", {"depth": 2}, False),
        ("normalised", "1f1b", {"depth": 2, "data": 2}, True),
    ],
)
def test_an_episode_is_that_of_scan(name, schedule, mesh, recompute):
    """Batch norm, keys, counters; and with replicas."""
    start, frames, expected = _expected(name, 5)
    network, _ = case(name if "data" not in mesh else f"{name}, reduced")
    actual = episode(
        network, *start, *frames, rng=RNG(), rule="backprop", schedule=schedule,
        recompute=recompute, execution="depth_sharded", mesh=make_mesh(**mesh),
    )  # fmt: skip
    assert_close(actual, expected, TOLERANCE["float64"])


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("recompute", [True, False])
def test_the_state_of_now_is_that_of_the_frame(recompute):
    """When a frame comes back, the state of its module is frames ahead."""
    network = networks.Network([networks.chain(networks.fading(), networks.dense(4)),
                                networks.chain(networks.fading(), networks.linear(3))])  # fmt: skip
    start = variables(network, (5,))
    frames = clip(5, (5,))
    expected = episode(network, *start, *frames, rule="backprop")
    actual = episode(
        network, *start, *frames, rule="backprop", schedule="gpipe", recompute=recompute,
        execution="depth_sharded", mesh=make_mesh(2),
    )  # fmt: skip
    assert_close(actual, expected, TOLERANCE["float64"])


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("schedule", "recompute"), [("blocking", False), ("gpipe", True), ("1f1b", False)]
)
def test_bubbles_and_padding_leak_nothing(schedule, recompute):
    network = networks.Network(
        [
            networks.chain(networks.dense(7), networks.batch_norm()),
            networks.chain(networks.dense(3), networks.cumulative_mean()),
            networks.chain(networks.batch_norm(), networks.linear(networks.NUM_OUTPUTS)),
        ]
    )
    start = variables(network, (5,))
    frames = clip(4, (5,))

    pipeline = Pipeline(make_mesh(3), schedule=schedule, recompute=recompute)
    task = Task(network, squared_error, "backprop")
    actual = pipeline.episode(task, *start, *frames, None, bubble=jnp.nan)
    expected = episode(network, *start, *frames, rule="backprop")
    assert_close(actual, expected, TOLERANCE["float64"])


def _times_run(schedule, num_devices, recompute):
    """How often each module runs forward in an episode, bubbles included."""
    calls, plain = [], networks.dense_network(2)

    def counted(i, module):
        def apply(params, state, x, *, train, rng):
            jax.debug.callback(lambda: calls.append(i))
            return module.apply(params, state, x, train=train, rng=rng)

        return module._replace(apply=apply)

    network = networks.Network([counted(i, m) for i, m in enumerate(plain.modules)])
    start = variables(plain, (5,), "float32")
    jax.block_until_ready(
        episode(
            network, *start, *clip(5, (5,), "float32"), rule="backprop", schedule=schedule,
            recompute=recompute, execution="depth_sharded", mesh=make_mesh(num_devices),
        )
    )  # fmt: skip
    jax.effects_barrier()
    return [calls.count(i) for i in range(2)]


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_who_waits_does_not_compute(schedule):
    assert _times_run(schedule, 2, recompute=False) == [5, 5]


@pytest.mark.usefixtures("quick_compile")
def test_recomputing_runs_every_frame_twice():
    assert _times_run("1f1b", 2, recompute=True) == [10, 10]


def test_residuals_that_are_parameters_are_not_kept():
    """The stash has one row for every frame in flight: parameters in it would cost far more."""
    network = networks.Network([networks.dense(16) for _ in range(2)] + [networks.linear(3)])
    start = variables(network, (16,), "float32")
    frames = clip(6, (16,), "float32", batch=1)

    def run(params, state, frames, targets):
        pipeline = Pipeline(make_mesh(3), schedule="gpipe", recompute=False)
        task = Task(network, squared_error, "backprop")
        return pipeline.episode(task, params, state, frames, targets, None)

    hlo = jax.jit(run).lower(*start, *frames).compile().as_text()
    stashes = {int(n) for n in re.findall(r"f32\[6,(\d+)\]", hlo)}
    assert stashes
    assert max(stashes) <= 4 * 16 < np.size(start[0][0]["kernel"])
