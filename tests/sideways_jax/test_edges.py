"""Inputs at the edge: the right answer, or a clear error before anything is computed."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import Module, Network, from_linen, make_mesh, step
from sideways_jax.stream import PipelinedModel
from tests.sideways_jax import networks
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import assert_close, clip, episode, variables

EXECUTIONS = {
    "scan": lambda: step.Scan(),
    "time_parallel": lambda: step.TimeParallel(),
    "depth_sharded": lambda: step.Pipeline(make_mesh(2)),
}


# Options that an execution does not have ----------------------------------------------------------


@pytest.mark.parametrize("execution", ["scan", "time_parallel"])
@pytest.mark.parametrize(
    "option", [{"groups": (1, 1)}, {"recompute": False}, {"recompute": True}, {"schedule": "1f1b"}]
)
def test_options_of_a_pipeline_on_one_device(execution, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.*runs on one device and takes no {name}"):
        step.make_train_step(
            networks.dense_network(2), squared_error, optax.sgd(0.1), execution=execution, **option
        )


def test_options_beside_a_value():
    with pytest.raises(ValueError, match=r"groups=\(1, 1\): execution=Pipeline.*takes no groups"):
        step.make_train_step(
            networks.dense_network(2), squared_error, optax.sgd(0.1), groups=(1, 1),
            execution=step.Pipeline(make_mesh(2)),
        )  # fmt: skip
    with pytest.raises(ValueError, match="recompute=True: Sideways keeps nothing"):
        step.make_train_step(
            networks.dense_network(2), squared_error, optax.sgd(0.1),
            execution=step.Pipeline(make_mesh(2), recompute=True),
        )  # fmt: skip


# Frames and targets -------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 2, 5), (4,)), r"targets have the shape \(4,\); they need \[K, B, ...\].* B = 2"),
        (((4, 2, 5), (4, 1, 3)), r"targets have the shape \(4, 1, 3\).* B = 2"),
        (((4,), (4,)), r"frames have the shape \(4,\); they need a batch axis"),
    ],
)
def test_a_missing_batch_axis_is_not_broadcast(execution, shapes, message):
    network = networks.dense_network(2)
    frames, targets = (np.zeros(shape, np.float32) for shape in shapes)
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1), execution=EXECUTIONS[execution]()
    )
    start = init(jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.float32))
    with pytest.raises(ValueError, match=message):
        train_step(start, frames, targets)


@pytest.mark.parametrize("execution", ["scan", "depth_sharded"])
def test_an_entry_without_a_batch_axis_on_a_stream(execution):
    """Nothing of it could be a bubble for one stream, and not for another."""
    first = Module(
        lambda key, x: ((), ()),
        lambda params, state, x, *, train, rng: ({"x": x, "mean": jnp.mean(x)}, state),
    )
    second = Module(
        lambda key, x: ((), ()),
        lambda params, state, x, *, train, rng: (x["x"] + x["mean"], state),
    )
    network = Network([first, second, networks.linear(3)])
    init, _ = step.make_train_step(
        network, squared_error, optax.sgd(0.1), update_every=1, execution=EXECUTIONS[execution]()
    )
    with pytest.raises(ValueError, match=r"output of module 0.*\['mean'\].*shape \(\).*B = 2"):
        init(jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.float32))


@pytest.mark.usefixtures("quick_compile")
def test_restarts_are_truth_values():
    network = networks.dense_network(2)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(0.1), update_every=1)
    frames, targets = clip(3, (5,), "float32", batch=2)
    with pytest.raises(ValueError, match="reset has dtype int32: give bool"):
        train_step(
            init(jax.random.key(0), frames[0]), frames, targets, jnp.zeros((3, 2), jnp.int32)
        )


# Narrow floats ------------------------------------------------------------------------------------


def _ones(dtype):
    """A network whose gradient is one at every frame, in parameters and loss."""
    add = Module(
        lambda key, x: (jnp.zeros((), dtype), ()),
        lambda params, state, x, *, train, rng: (x + params, state),
    )
    return Network([add, add])


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", ["sideways", "backprop"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_sums_over_many_frames_do_not_stall(execution, rule, dtype):
    frames = jnp.ones((1024, 1, 1), dtype)
    network = _ones(dtype)
    options = {"schedule": "1f1b"} if (execution, rule) == ("depth_sharded", "backprop") else {}
    if execution == "depth_sharded":
        options["mesh"] = make_mesh(2)
    done = episode(
        network, (jnp.zeros((), dtype),) * 2, ((), ()), frames, frames, rule=rule,
        execution=execution, loss_fn=lambda output, target: jnp.mean(output), **options,
    )  # fmt: skip
    for grad in done.grads:
        assert grad.dtype == dtype
        assert float(grad) == 1.0
    assert float(done.loss) == 1.0


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("execution", ["scan", "depth_sharded"])
def test_sums_of_an_update_on_a_stream_do_not_stall(execution):
    frames = jnp.ones((1024, 1, 1), jnp.bfloat16)
    init, train_step = step.make_train_step(
        _ones(jnp.bfloat16), lambda output, target: jnp.mean(output), optax.sgd(1.0),
        update_every=1024, execution=EXECUTIONS[execution](),
    )  # fmt: skip
    _, metrics = jax.jit(train_step)(init(jax.random.key(0), frames[0]), frames, frames)
    assert float(metrics["grad_norm"]) == pytest.approx(2**0.5, rel=1e-2)
    assert float(metrics["loss"]) == 1.0


# What lies on a mesh ------------------------------------------------------------------------------


def _equal_modules():
    layer = networks.dense(5)
    return Network([layer, layer, networks.chain(layer, networks.linear(3))])


def _training(network, groups=None, **options):
    tx = optax.sgd(1e-2, momentum=0.9)
    pipeline = step.Pipeline(make_mesh(2), groups)
    return tx, *step.make_train_step(network, squared_error, tx, execution=pipeline, **options)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("update_every", [None, 1])
def test_a_state_made_for_other_groups_of_equal_modules(update_every):
    network = Network([networks.dense(5)] * 3)
    frames, targets = clip(6, (5,), "float32")[0], clip(6, (5,), "float32")[0]
    _, init, _ = _training(network, (1, 2), update_every=update_every)
    _, _, train_step = _training(network, (2, 1), update_every=update_every)
    start = init(jax.random.key(0), frames[0])
    with pytest.raises(ValueError, match=r"groups \(\(0, 1\), \(2,\)\).*but for \(\(0,\), \(1, 2"):
        train_step(start, frames, targets)


def _costs_follow_the_frame():
    """The first module is cheap for small frames, and costs the most for large ones."""

    def pooled(features):
        layer = networks.conv(features)

        def apply(params, state, x, *, train, rng):
            y, state = layer.apply(params, state, x, train=train, rng=rng)
            return jnp.mean(y, axis=(1, 2), keepdims=True), state

        return Module(layer.init, apply)

    dense = networks.chain(networks.flatten(), networks.dense(16), networks.dense(16))
    return Network([pooled(4), dense, networks.chain(networks.dense(16), networks.linear(3))])


@pytest.mark.usefixtures("x64", "quick_compile")
def test_frames_of_another_size_do_not_move_modules():
    """Groups balance costs at the size of `init`; afterwards they are those of the state."""
    network = _costs_follow_the_frame()
    small, large = (clip(6, (n, n, 2)) for n in (2, 16))
    tx, init, train_step = _training(network)
    assert init(jax.random.key(0), large[0][0]).params.groups == ((0,), (1, 2))
    start = init(jax.random.key(0), small[0][0])
    assert start.params.groups == ((0, 1), (2,))
    after, metrics = train_step(start, *large)
    one_init, one_step = step.make_train_step(network, squared_error, tx)
    one, expected = jax.jit(one_step)(one_init(jax.random.key(0), small[0][0]), *large)
    assert_close(metrics, expected, 1e-10)
    for frame in (small[0][0], large[0][0]):  # Of whichever size the conversion was asked for.
        to_modules, _ = step.per_module(network, tx, make_mesh(2), frame)
        assert_close(to_modules(after).params, one.params, 1e-10)


@pytest.mark.usefixtures("quick_compile")
def test_frames_of_another_size_do_not_meet_what_is_in_flight():
    network = Network([networks.conv(2), networks.conv(3)])
    frames, _ = clip(4, (6, 6, 2), "float32")
    _, init, train_step = _training(network, update_every=1)
    start = init(jax.random.key(0), frames[0])
    with pytest.raises(ValueError, match="came from frames of another shape"):
        train_step(start, frames[:, :, :5], frames[:, :, :5])


@pytest.mark.usefixtures("quick_compile")
def test_a_call_that_is_not_jitted_compiles_once(caplog):
    network = networks.dense_network(2)
    frames, targets = clip(4, (5,), "float32")
    _, init, train_step = _training(network)
    _, stream_init, stream_step = _training(network, update_every=2)
    params, state = variables(network, (5,), "float32")
    pipeline = step.Pipeline(make_mesh(2))

    def all_of_them():
        train_step(init(jax.random.key(0), frames[0]), frames, targets)
        stream_step(stream_init(jax.random.key(0), frames[0]), frames, targets)
        step.episode_gradients(
            network, squared_error, params, state, frames, targets, execution=pipeline
        )

    all_of_them()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        all_of_them()
    compiled = [one.message for one in caplog.records if "Finished XLA compilation" in one.message]
    assert not [name for name in compiled if "train_step" in name or "_episode" in name]


@pytest.mark.usefixtures("quick_compile")
def test_metrics_do_not_gather_outputs():
    """One number a step leaves a device, whatever the size of an output."""
    network = Network([networks.dense(4), networks.dense(128)])
    frames = clip(8, (5,), "float32")[0]
    targets = jnp.zeros((8, 4, 128), jnp.float32)
    _, init, train_step = _training(
        network, metrics_fn=lambda y, t: {"distance": jnp.mean(jnp.abs(y - t))}
    )
    start = init(jax.random.key(0), frames[0])
    compiled = jax.jit(train_step).lower(start, frames, targets).compile()
    outputs = 8 * 4 * 128 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < outputs
    assert "all-gather" not in compiled.as_text()


@pytest.mark.usefixtures("quick_compile")
def test_a_state_in_host_memory_and_back():
    """No device gets what is another's on the way to a checkpoint, or from it."""
    network = _equal_modules()
    frame = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    tx, init, _ = _training(network)
    start = init(jax.random.key(0), frame)
    to_modules, from_modules = step.per_module(network, tx, make_mesh(2), frame)
    modules = to_modules(start)
    kept = jax.tree.leaves((modules.params, modules.state, modules.opt_state))
    assert all(isinstance(leaf, np.ndarray) for leaf in kept)
    back = from_modules(modules)
    assert_close(back, start, 0)
    for leaf in jax.tree.leaves((back.params, back.opt_state)):
        assert {piece.data.shape[0] for piece in leaf.addressable_shards} == {1}
        assert len(leaf.sharding.device_set) == 2


# Integers in the state of replicas ----------------------------------------------------------------


def _keeps(update):
    """A module that keeps an integer, and hands its input on."""
    return Module(
        lambda key, x: ((), {"mean": jnp.zeros(()), "seen": jnp.zeros((), jnp.int32)}),
        lambda params, state, x, *, train, rng: (x, update(state, x)),
    )


_UPDATES = {
    "positive": lambda state, x: state | {"seen": state["seen"] + (x > 0).sum(dtype=jnp.int32)},
    "examples": lambda state, x: state | {"seen": state["seen"] + len(x)},
    "by way of a mean": lambda state, x: {
        "mean": state["mean"] + x.mean(),
        "seen": state["seen"] + state["mean"].astype(jnp.int32),
    },
}


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("update", _UPDATES)
@pytest.mark.parametrize("update_every", [None, 1])
def test_a_counter_that_replicas_would_not_agree_on(update, update_every):
    network = Network([networks.dense(4), _keeps(_UPDATES[update]), networks.linear(3)])
    frame = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    for data, said in (
        (2, r"state\['seen'\] of module 1 .*2 replicas with 2 .* set data=1"),
        (1, ""),
    ):
        init, _ = step.make_train_step(
            network, squared_error, optax.sgd(0.1), update_every=update_every,
            execution=step.Pipeline(make_mesh(2, data)),
        )  # fmt: skip
        if said:
            with pytest.raises(ValueError, match=said):
                init(jax.random.key(0), frame)
        else:
            init(jax.random.key(0), frame)


@pytest.mark.usefixtures("quick_compile")
def test_a_counter_of_frames_on_replicas():
    """`test_counters_of_replicas_agree` of the streams has what it counts."""
    normalised = from_linen(nn.BatchNorm(axis_name="data"))
    counted = networks.chain(networks.counter(), normalised)
    network = Network([counted, networks.batch_norm(), networks.linear(3)])
    init, _ = step.make_train_step(
        network, squared_error, optax.sgd(0.1), execution=step.Pipeline(make_mesh(2, 2))
    )
    init(jax.random.key(0), jax.ShapeDtypeStruct((4, 5), jnp.float32))


# Inference ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_compile")
def test_inference_on_a_mesh_does_not_differentiate():
    """A loop of unknown length has no gradient; where nothing is trained it needs none."""

    def halve(params, state, x, *, train, rng):
        return jax.lax.while_loop(lambda y: jnp.abs(y).max() > 1, lambda y: y / 2, x), state

    network = Network([Module(lambda key, x: ((), ()), halve), networks.linear(3)])
    frames = 8 * np.ones((3, 2, 5), np.float32)
    params, state = network.init(jax.random.key(0), frames[0])
    model = PipelinedModel(network, params, state, mesh=make_mesh(2))
    outputs = [model.push(frame) for frame in frames]
    assert outputs[0] is None
    expected, _ = network.apply(params, state, frames[0])
    np.testing.assert_allclose(outputs[1], expected, rtol=1e-6)


def test_a_module_with_a_memory_is_not_shown_streams():
    """`PipelinedModel` keeps no state between frames: the memory would stand still in silence."""

    def remember(params, state, x, *, train, rng):
        return x + state, state + x.mean()

    network = Network(
        [
            networks.linear(4),
            Module(lambda key, x: ((), jnp.zeros(())), remember),
            networks.linear(3),
        ]
    )
    frame = np.ones((2, 5), np.float32)
    params, state = network.init(jax.random.key(0), frame)
    for mesh in (None, make_mesh(2)):
        with pytest.raises(ValueError, match=r"module 1 .*changes its state in evaluation"):
            PipelinedModel(network, params, state, mesh=mesh).push(frame)


# What comes back, and what is kept ----------------------------------------------------------------


@pytest.mark.parametrize("update_every", [None, 1])
@pytest.mark.parametrize("execution", ["scan", "depth_sharded"])
@pytest.mark.parametrize(
    ("metrics_fn", "message"),
    [
        (lambda y, t: {"a": jnp.mean(y, axis=-1)}, r"'a' of the shape .*: give a scalar"),
        (lambda y, t: {"loss": jnp.mean(y)}, "'loss', a name that is taken"),
        (lambda y, t: jnp.mean(y), "give a dict of scalars"),
    ],
)
def test_metrics_that_are_no_scalars(execution, update_every, metrics_fn, message):
    network = networks.dense_network(2)
    frames, targets = clip(4, (5,), "float32")
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1), execution=EXECUTIONS[execution](),
        update_every=update_every, metrics_fn=metrics_fn,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        train_step(init(jax.random.key(0), frames[0]), frames, targets)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("rule", ["sideways", "backprop"])
def test_a_stream_goes_on_after_all_numbers_of_frames(rule):
    """Numbers of frames are not negative: those are bubbles."""
    network = networks.dense_network(2)
    frames, targets = clip(6, (5,), "float32")
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1), rule=rule, update_every=1, with_outputs=True
    )
    train_step, start = jax.jit(train_step), init(jax.random.key(0), frames[0])
    expected, metrics, shown = train_step(start, frames, targets)
    last = start._replace(frames=jnp.int32(2**31 - 3))
    actual, late_metrics, late = train_step(last, frames, targets)
    assert int(actual.frames) == 3
    assert_close(actual.params, expected.params, 0)
    assert_close(late_metrics, metrics, 0)
    np.testing.assert_array_equal(late.frames >= 0, shown.frames >= 0)


@pytest.mark.usefixtures("quick_compile")
def test_a_state_of_another_optimizer_of_the_same_size():
    network = _equal_modules()
    frames, targets = clip(6, (5,), "float32")
    pipeline = step.Pipeline(make_mesh(2))
    init, _ = step.make_train_step(
        network, squared_error, optax.sgd(0.1, momentum=0.9), execution=pipeline
    )
    _, train_step = step.make_train_step(
        network, squared_error, optax.scale_by_rms(), execution=pipeline
    )
    with pytest.raises(ValueError, match=r"opt_state .* made for another network, optimizer or"):
        train_step(init(jax.random.key(0), frames[0]), frames, targets)


@pytest.mark.usefixtures("quick_compile")
def test_frames_with_their_sides_exchanged_do_not_meet_what_is_in_flight():
    network = Network([networks.conv(2), networks.conv(3)])
    frames, _ = clip(4, (6, 4, 2), "float32")
    _, init, train_step = _training(network, update_every=1)
    start = init(jax.random.key(0), frames[0])
    turned = frames.swapaxes(2, 3)
    with pytest.raises(ValueError, match="came from frames of another shape"):
        train_step(start, turned, turned)


@pytest.mark.usefixtures("quick_compile")
def test_a_loss_without_a_hash():
    @dataclasses.dataclass
    class Weighted:
        weight: float

        def __call__(self, output, target):
            return self.weight * squared_error(output, target)

    network = _equal_modules()
    start, frames = variables(network, (5,), "float32"), clip(6, (5,), "float32")
    one, many = (
        step.episode_gradients(
            network, Weighted(2.0), *start, *frames, execution=EXECUTIONS[name]()
        )
        for name in ("scan", "depth_sharded")
    )
    assert_close(many, one, 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("execution", ["scan", "depth_sharded"])
def test_the_norm_of_large_gradients_in_narrow_floats(execution, dtype):
    frames = jnp.full((8, 1, 1), 600, dtype)
    times = Module(
        lambda key, x: (jnp.ones((), dtype), ()),
        lambda params, state, x, *, train, rng: (x * params, state),
    )
    init, train_step = step.make_train_step(
        Network([times, times]), lambda y, t: jnp.mean(y), optax.sgd(0.0),
        execution=EXECUTIONS[execution](),
    )  # fmt: skip
    _, metrics = jax.jit(train_step)(init(jax.random.key(0), frames[0]), frames, frames)
    assert metrics["grad_norm"].dtype == jnp.float32
    assert float(metrics["grad_norm"]) == pytest.approx(600 * 2**0.5, rel=1e-2)


def test_what_is_no_execution():
    for execution in (step.Scan, None, 3):
        with pytest.raises(ValueError, match=r"execution=.*give a name, 'scan'.*or a value"):
            step.make_train_step(
                networks.dense_network(2), squared_error, optax.sgd(0.1), execution=execution
            )
    for groups in ((2, 1), 2, ((0,), (1,))):
        with pytest.raises(ValueError, match="groups"):
            step.make_train_step(
                networks.dense_network(2), squared_error, optax.sgd(0.1),
                execution="depth_sharded", mesh=make_mesh(2), groups=groups,
            )  # fmt: skip


@pytest.mark.usefixtures("quick_compile")
def test_a_state_that_another_train_step_made():
    network = networks.dense_network(2)
    frames, targets = clip(4, (5,), "float32")
    options = {
        "scan": {},
        "blocking": {"rule": "backprop"},
        "mesh": {"execution": EXECUTIONS["depth_sharded"]()},
    }
    made = {
        name: step.make_train_step(network, squared_error, optax.sgd(0.1), update_every=1, **given)
        for name, given in options.items()
    }
    starts = {name: init(jax.random.key(0), frames[0]) for name, (init, _) in made.items()}
    for name, (_, train_step) in made.items():
        for other, start in starts.items():
            if other != name:
                with pytest.raises(ValueError, match=r"in flight, where .* is needed.*`init`"):
                    train_step(start, frames, targets)
