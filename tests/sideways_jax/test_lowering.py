"""Every execution lowers for TPU and CUDA, on a machine that has neither."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from sideways_jax import make_mesh, step
from sideways_jax.device_programs import clips
from sideways_jax.device_programs.plan import make_plan
from sideways_jax.device_programs.steps import give, make_steps
from sideways_jax.rule import schedules
from sideways_jax.rule.task import Task
from tests.sideways_jax import sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import BATCH, case

PLATFORMS = ("tpu", "cuda")


def _arguments(network, frame, num_frames):
    frames = jax.ShapeDtypeStruct((num_frames, BATCH, *frame), jnp.float32)
    targets = jax.ShapeDtypeStruct((num_frames, BATCH, sharding.networks.NUM_OUTPUTS), jnp.float32)
    return frames, targets


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "scan"},
        {"execution": "time_parallel"},
        {"execution": "scan", "data": 2},
        {"execution": "time_parallel", "data": 2},
        {"execution": "scan", "rule": "backprop"},
        {"execution": "scan", "rule": "pipelined_backprop"},
        {"execution": "scan", "update_every": 1},
        {"execution": "depth_sharded"},
        {"execution": "depth_sharded", "rule": "backprop", "schedule": "1f1b"},
        {"execution": "depth_sharded", "update_every": 1},
        {"execution": "depth_sharded", "rule": "pipelined_backprop", "update_every": 1},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_train_steps(options):
    network, frame = case("vectors", "float32")
    options = dict(options)
    if data := options.pop("data", None):
        options["mesh"] = make_mesh(1, data=data)
    elif options["execution"] == "depth_sharded":
        options["mesh"] = make_mesh(2)
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1, momentum=0.9), **options
    )
    clip = _arguments(network, frame, 2 * network.depth)
    first = jax.ShapeDtypeStruct(clip[0].shape[1:], jnp.float32)
    train_state = jax.eval_shape(init, jax.random.key(0), first)
    for platform in PLATFORMS:
        exported = export.export(jax.jit(train_step), platforms=[platform])(train_state, *clip)
        assert exported.platforms == (platform,)


@pytest.mark.parametrize("rule", ["sideways", "pipelined_backprop"])
def test_programs_of_devices(rule):
    network, frame = case("vectors", "float32")
    params, state = sharding.variables(network, frame, "float32")
    frames, targets = sharding.clip(2 * network.depth - 1, frame, "float32")
    plan = make_plan(
        Task(network, squared_error, rule), params, state, frames[0], targets[0], make_mesh(2),
        (3, 2), jax.random.key(0),
    )  # fmt: skip
    steps = make_steps(plan, partial(clips.start, plan, True))
    table = schedules.sideways(len(frames), network.depth)
    numbers = np.stack([table.forward, table.backward])
    given = give(plan, frames, targets, numbers, jax.random.key(0))
    for n in range(2):
        own = (plan.own(n, tree) for tree in (params, state))
        own_params, own_state = (jax.device_put(tree, plan.where.places[n].whole) for tree in own)
        started = steps.start[n](given[n], own_state)
        for platform in PLATFORMS:
            first = export.export(steps.start[n], platforms=[platform])(given[n], own_state)
            then = export.export(steps.step[n], platforms=[platform])(
                own_params, *started, given[n]
            )
            assert first.platforms == then.platforms == (platform,)
