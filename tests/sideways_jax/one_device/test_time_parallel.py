"""All frames at once, for modules whose states and keys make that hard: the answer is that of scan.

The rule itself, on ordinary modules, is tested in `test_episode.py`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from sideways_jax import Module, Network, from_linen, make_mesh, step
from sideways_jax.one_device.state_split import draws_alike, remembered, split_program, trace
from sideways_jax.rule.task import Task
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.comparison import assert_same, assert_same_episode
from tests.sideways_jax.networks import chain, linear, random_clip, squared_error

WIDTH = 4


def in_checkpoint(module):
    """A module that keeps nothing for its backward pass."""

    def apply(params, state, x, *, train, rng):
        def forward(params, state, x, rng):
            return module.apply(params, state, x, train=train, rng=rng)

        return jax.checkpoint(forward)(params, state, x, rng)

    return module._replace(apply=apply)


def in_branch(module):
    """A module that a condition on its input runs, or something else, of the same types."""

    def apply(params, state, x, *, train, rng):
        def forward(state):
            return module.apply(params, state, x, train=train, rng=rng)

        return jax.lax.cond(x[0, 0] > 0, forward, lambda state: (2 * x, state), state)

    return module._replace(apply=apply)


def in_loop(module, length=2):
    """Several times the same layer, with parameters and states of their own, as one scan."""

    def init(key, x):
        return jax.vmap(lambda key: module.init(key, x))(jax.random.split(key, length))

    def apply(params, state, x, *, train, rng):
        def body(x, layer):
            @jax.jit
            def one(params, state, x):
                return module.apply(params, state, x, train=train, rng=rng)

            return one(*layer, x)

        return jax.lax.scan(body, x, (params, state))

    return Module(init, apply)


def accumulating():
    """A recurrent module: its output is a sum over all frames; and a counter beside that."""

    def init(key, x):
        width = x.shape[-1]
        kernel = 0.3 * jnp.eye(width, dtype=x.dtype)
        return kernel, {"frames": jnp.zeros((), jnp.int32), "sum": jnp.zeros(x.shape, x.dtype)}

    def apply(params, state, x, *, train, rng):
        y = jnp.tanh(x + state["sum"] @ params)
        return y, {"frames": state["frames"] + 1, "sum": y} if train else state

    return Module(init, apply)


def average_of_weights(decay=0.9):
    """A state made from the weights, the same for all frames but for where it starts."""

    def init(key, x):
        kernel = jax.random.normal(key, (x.shape[-1], x.shape[-1]), x.dtype)
        return kernel, jnp.zeros_like(kernel)

    def apply(params, state, x, *, train, rng):
        return x @ params, decay * state + (1 - decay) * jnp.tanh(params) if train else state

    return Module(init, apply)


class Block(nn.Module):
    """A residual block of Flax, as one writes it."""

    train: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        types = {"param_dtype": x.dtype}
        options = {"use_running_average": not self.train, "force_float32_reductions": False}
        y = nn.relu(nn.BatchNorm(**options, **types)(nn.Dense(WIDTH, **types)(x)))
        return x + y, None


class Blocks(nn.Module):
    """Blocks in `nn.scan`, in `nn.remat`."""

    @nn.compact
    def __call__(self, x, *, train):
        block = nn.scan(
            nn.remat(Block), variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True}, length=2,
        )  # fmt: skip
        return block(train)(x)[0]


NORMALISED = chain(linear(WIDTH), networks.batch_norm())
AT_ONCE = {
    "checkpoint": in_checkpoint(NORMALISED),
    "scan over layers": in_loop(NORMALISED),
    "checkpoint in a scan": in_loop(in_checkpoint(NORMALISED)),
    "scan in a checkpoint": in_checkpoint(in_loop(networks.cumulative_mean())),
    "made from weights": average_of_weights(),
    "made from weights, in a checkpoint": in_checkpoint(in_loop(average_of_weights())),
    "flax": from_linen(Blocks()),
}
ONE_BY_ONE = {
    "branch": in_branch(NORMALISED),
    "recurrent": accumulating(),
    "recurrent, in a checkpoint": in_checkpoint(accumulating()),
}
MODULES = AT_ONCE | ONE_BY_ONE


@functools.cache
def episode(network, rule, execution, train):
    def run(params, state, frames, targets, rng=None):
        return step.episode_gradients(
            network, squared_error, params, state, frames, targets, rule=rule, train=train,
            execution=execution, rng=rng,
        )  # fmt: skip

    return jax.jit(run)


def assert_as_scan(network, clip, *, rule="sideways", train=True, rng=None):
    params, state = network.init(jax.random.key(0), clip[0][0])
    expected, actual = (
        episode(network, rule, execution, train)(params, state, *clip, rng)
        for execution in ("scan", "time_parallel")
    )
    assert_same_episode(actual, expected)


def network_of(*names):
    """Modules of these names, one after the other; the last gives the outputs."""
    hidden = [MODULES[name] for name in names]
    return Network([*hidden[:-1], chain(hidden[-1], linear(networks.NUM_OUTPUTS))])


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    "names",
    [
        ("checkpoint in a scan", "made from weights, in a checkpoint"),
        ("branch", "recurrent, in a checkpoint"),
    ],
)
def test_any_state_is_that_of_scan(names):
    assert_as_scan(network_of(*names), random_clip(4, (WIDTH,)))


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("name", ["flax", "recurrent"])
def test_any_state_with_backprop_on_bytes(name):
    first = chain(networks.to_float(), networks.flatten(), linear(WIDTH), MODULES[name])
    network = Network([first, linear(networks.NUM_OUTPUTS)])
    assert_as_scan(network, networks.byte_clip(3, (2, 2, 1)), rule="backprop")


def traced(module, train, rng=None):
    """A module's program, and arguments for it."""
    x = jnp.arange(3.0 * WIDTH).reshape(3, WIDTH) / 7
    params, state = module.init(jax.random.key(0), x)
    arguments = jax.tree.map(jnp.asarray, (params, state)), x
    return trace(module, params, state, x, rng, train=train), *arguments


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("name", MODULES)
def test_the_two_parts_of_a_module_are_the_module(name):
    module = MODULES[name]
    program, (params, state), x = traced(module, train=True)
    split = split_program(program)
    assert (split is not None) == (name in AT_ONCE)
    if split is None:
        return
    y, residuals = jax.jit(split.forward)(params, jax.tree.map(poisoned, state), x, None)
    actual = y, jax.jit(split.update)(state, residuals)
    assert_same(actual, jax.jit(functools.partial(module.apply, train=True, rng=None))(
        params, state, x))  # fmt: skip


def poisoned(leaf):
    return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MODULES)
def test_a_state_that_is_passed_on_does_not_change(name):
    """While not training, that is: normalisation then uses it, and frames need not wait."""
    split = split_program(traced(MODULES[name], train=False)[0])
    assert split is not None
    assert split.update is None


def test_only_what_the_output_sees_is_remembered():
    """The rest of a state needs no copy for every frame."""
    program, *_ = traced(accumulating(), train=True)
    assert remembered(program) == (False, True)  # the counter, the sum


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", ["made from weights", "made from weights, in a checkpoint"])
def test_what_is_the_same_for_all_frames_is_there_once(name):
    num_frames, width = 64, 128
    network = Network([MODULES[name], linear(networks.NUM_OUTPUTS)])
    frames = jax.ShapeDtypeStruct((num_frames, 1, width), jnp.float32)
    targets = jax.ShapeDtypeStruct((num_frames, 1, networks.NUM_OUTPUTS), jnp.float32)
    params, state = jax.eval_shape(
        network.init, jax.random.key(0), jax.ShapeDtypeStruct(frames.shape[1:], frames.dtype)
    )
    run = episode(network, "sideways", "time_parallel", train=True)
    compiled = run.lower(params, state, frames, targets).compile()
    copies = compiled.memory_analysis().temp_size_in_bytes / (4 * width * width)
    assert copies < num_frames / 4


# Random numbers ---------------------------------------------------------------------------------


def noise():
    """Dropout and normal noise, from keys that it derives."""

    def apply(params, state, x, *, train, rng):
        if not train:
            return x, state
        one, two = jax.random.split(rng)
        keep = jax.random.bernoulli(one, 0.5, x.shape)
        return x * keep.astype(x.dtype) + jax.random.normal(two, x.shape, x.dtype), state

    return Module(lambda key, x: ((), ()), apply)


@pytest.fixture
def default_generator():
    """Keys of the old style are of the generator that JAX is set to."""
    before = jax.config.jax_default_prng_impl
    yield functools.partial(jax.config.update, "jax_default_prng_impl")
    jax.config.update("jax_default_prng_impl", before)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("generator", "style"), [("rbg", "typed"), ("unsafe_rbg", "typed"), ("unsafe_rbg", "bits")]
)
def test_random_numbers_are_those_of_scan(generator, style, default_generator):
    """Of generators that draw differently for several keys at once."""
    default_generator(generator)
    rng = jax.random.key(3) if style == "typed" else jax.random.PRNGKey(3)
    last = chain(networks.key_bits(), linear(networks.NUM_OUTPUTS))
    network = Network([chain(noise(), networks.batch_norm()), last])
    assert_as_scan(network, random_clip(4, (WIDTH,)), rng=rng)


@pytest.mark.parametrize(
    ("generator", "alike"), [("threefry2x32", True), ("rbg", False), ("unsafe_rbg", False)]
)
def test_which_random_numbers_need_their_key_alone(generator, alike):
    rng = jax.random.key(0, impl=generator)
    assert draws_alike(traced(in_checkpoint(noise()), train=True, rng=rng)[0]) == alike
    # One that has a key and does not use it can run on all frames at once.
    assert draws_alike(traced(NORMALISED, train=True, rng=rng)[0])


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("rule", ["sideways", "pipelined_backprop", "backprop"])
@pytest.mark.parametrize("kind", [step.TimeParallel, step.Scan])
def test_replicas_are_those_of_a_pipeline_of_one_device(rule, kind):
    """Statistics and dropout masks of their own, means over replicas; the batch stays divided."""
    network, frame = sharding.case("vectors")
    mesh = make_mesh(1, data=2)
    start = sharding.variables(network, frame)
    frames, targets = sharding.clip(2 * network.depth, frame)
    task = Task(network, squared_error, rule)
    schedule = "1f1b" if rule == "backprop" else None
    arguments = task, *start, frames, targets, jax.random.key(3)
    expected = step.Pipeline(mesh, schedule=schedule).episode(*arguments)
    actual = jax.jit(functools.partial(kind(mesh=mesh).episode, task))(*arguments[1:])
    sharding.assert_close(actual._asdict(), expected._asdict(), 1e-10)
    assert actual.outputs.sharding.spec[1] == "data"


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", ["time_parallel", "scan"])
def test_training_on_replicas_starts_everywhere_and_stays_there(name):
    network, frame = sharding.case("vectors", "float32")
    frames, targets = sharding.clip(2 * network.depth, frame, "float32")
    options = {"execution": name, "mesh": make_mesh(1, data=2)}
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(0.01), **options)
    shape = jax.ShapeDtypeStruct(frames.shape[1:], frames.dtype)
    train_state, _ = jax.jit(train_step)(init(jax.random.key(0), shape), frames, targets)
    for leaf in jax.tree.leaves(train_state.params):
        assert len(leaf.devices()) == 2 and leaf.sharding.is_fully_replicated
    with pytest.raises(
        ValueError, match=r"divides batches, not modules; use make_mesh\(1, data=n\)"
    ):
        step.EXECUTIONS[name](mesh=make_mesh(2))
    with pytest.raises(ValueError, match=r"^groups=\(5,\).*takes no groups"):
        step.make_train_step(network, squared_error, optax.sgd(0.01), groups=(5,), **options)
    with pytest.raises(ValueError, match="a batch of 4 does not divide into data=3"):
        step.EXECUTIONS[name](mesh=make_mesh(1, data=3)).episode(
            Task(network, squared_error), *sharding.variables(network, frame, "float32"),
            frames, targets, None,
        )  # fmt: skip


@pytest.mark.usefixtures("quick_compile")
def test_a_mesh_without_replicas_is_one_device():
    network, frame = sharding.case("vectors", "float32")
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("depth",))
    frames, targets = sharding.clip(2 * network.depth, frame, "float32")
    arguments = *sharding.variables(network, frame, "float32"), frames, targets, jax.random.key(3)
    one, other = (
        jax.jit(functools.partial(kind.episode, Task(network, squared_error)))(*arguments)
        for kind in (step.TimeParallel(mesh), step.TimeParallel())
    )
    sharding.assert_close(one._asdict(), other._asdict(), 0)


def test_a_stream_is_not_divided():
    network, _ = sharding.case("vectors", "float32")
    options = {"execution": "scan", "mesh": make_mesh(1, data=2), "update_every": 1}
    with pytest.raises(ValueError, match=r"update_every=1.*not those of streams; leave out its"):
        step.make_train_step(network, squared_error, optax.sgd(0.01), **options)
