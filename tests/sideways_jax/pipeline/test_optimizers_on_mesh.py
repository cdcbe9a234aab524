"""Training with an optimizer on a mesh is training with it on one device, or refused."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from sideways_jax import Module, Network, make_mesh, step
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import assert_close

DEPTH, CALLS = 3, 3


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def _scaled(updates, factor):
    return jax.tree.map(lambda g: -0.05 * factor * g, updates)


def _measured_at_first(measure):
    """Scales by what `init` measures of the parameters."""
    return optax.GradientTransformation(
        measure, lambda updates, state, params=None: (_scaled(updates, state), state)
    )


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _larger_than(limit):
    return optax.stateless(lambda u, p: _scaled(u, 1.0 if _size(p) > limit else 3.0))


def _drawn_to(start):
    def update(updates, params):
        return jax.tree.map(lambda g, p, p0: -0.05 * (g + 0.1 * (p - p0)), updates, params, start)

    return optax.stateless(update)


def _initial():
    """Parameters of the network below, as a user would have them at hand."""
    frame = jax.ShapeDtypeStruct((sharding.BATCH, 5), "float64")
    return networks.dense_network(DEPTH).init(jax.random.key(9), frame)[0]


OPTIMIZERS = {
    "norm of the initial parameters": lambda: _measured_at_first(optax.tree.norm),
    "number of parameters": lambda: _measured_at_first(lambda p: jnp.asarray(_size(p) / 50)),
    # 42 + 32 + 15 = 89 parameters: with stand-ins for those elsewhere there are fewer.
    "more than 88 parameters": lambda: _larger_than(88),
    "more than 89 parameters": lambda: _larger_than(89),
    "norm of integers": lambda: optax.stateless(
        lambda u, p: _scaled(u, optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.int32), u)))
    ),
    "closes over parameters": lambda: _drawn_to(_initial()),
    "momentum, clip": lambda: optax.chain(
        optax.sgd(0.05, momentum=0.9), optax.clip_by_global_norm(0.01)
    ),
    "MultiSteps": lambda: optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05, momentum=0.9)), 2
    ),
    # Kernels of 5 x 7, 7 x 4 and 4 x 3: the first is factored, the second would be with one more.
    "adafactor": lambda: optax.adafactor(0.05, min_dim_size_to_factor=5),
    "noise": lambda: optax.noisy_sgd(0.05, key=jax.random.key(2)),
}


@functools.cache
def _clips(num_frames):
    frames = sharding.draw((CALLS, num_frames, sharding.BATCH, 5), "float64", 1)
    shape = (CALLS, num_frames, sharding.BATCH, networks.NUM_OUTPUTS)
    return frames, sharding.draw(shape, "float64", 2)


def _trained(tx, mesh=None, network=None, **options):
    """The state after three calls, with a pytree for every module, and metrics."""
    network = network or networks.dense_network(DEPTH)
    if mesh is not None:
        options |= {"execution": "depth_sharded", "mesh": mesh}
    init, train_step = step.make_train_step(network, squared_error, tx, **options)
    frame = jax.ShapeDtypeStruct((sharding.BATCH, 5), "float64")
    train_state = init(jax.random.key(4), frame)

    def one(train_state, clip):
        return train_step(train_state, *clip)

    train_state, metrics = jax.jit(lambda s, clips: jax.lax.scan(one, s, clips))(
        train_state, _clips(2 * DEPTH)
    )
    if mesh is not None:
        to_modules, _ = step.per_module(network, tx, mesh, frame)
        train_state = to_modules(train_state)
    return jax.device_get((train_state._replace(in_flight=(), rng=()), metrics))


# test_sharded_optimizer.py has the others, without a network.
QUICK = ("norm of the initial parameters", "more than 88 parameters", "MultiSteps", "noise")


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in OPTIMIZERS],
)
def test_updates_per_episode_are_those_of_one_device(name):
    tx = OPTIMIZERS[name]()
    assert_close(_trained(tx, make_mesh(2)), _trained(tx), 1e-10)


ONLINE = {
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(0.05),
    "momentum, clip": OPTIMIZERS["momentum, clip"],
    "novograd": lambda: optax.novograd(0.05),
}


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "momentum, clip" else pytest.mark.full)
        for name in ONLINE
    ],
)
def test_updates_at_every_step_are_those_of_one_device(name):
    """Modules without gradients are held back in both."""
    tx = ONLINE[name]()
    assert_close(_trained(tx, make_mesh(3), update_every=1), _trained(tx, update_every=1), 1e-10)


def _keyed(width):
    """A layer whose state has keys: one for its own noise, and two of another kind."""
    inner = networks.dense(width)

    def init(key, x):
        params, _ = inner.init(key, x)
        return params, (jax.random.key(3), jax.random.split(jax.random.key(1, impl="rbg")))

    def apply(params, state, x, *, train, rng):
        y, _ = inner.apply(params, (), x, train=train, rng=rng)
        key, *rest = state
        key, drawn = jax.random.split(key)
        return y + 0.1 * jax.random.normal(drawn, (1, width), y.dtype), (key, *rest)

    return Module(init, apply)


def _dropped_out(width):
    """A layer with dropout whose forward pass is run again on the way back: it keeps its key."""
    inner = networks.chain(networks.dense(width), networks.dropout())

    def apply(params, state, x, *, train, rng):
        def run(params, x, rng):
            return inner.apply(params, ((), ()), x, train=train, rng=rng)[0]

        return jax.checkpoint(run)(params, x, rng), state

    return Module(lambda key, x: (inner.init(key, x)[0], ()), apply)


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (_keyed, {}),
        (_dropped_out, {"rule": "backprop", "schedule": "1f1b", "recompute": False}),
    ],
)
def test_keys_in_states_and_residuals(layer, options):
    network = Network([networks.dense(4), layer(5), networks.linear(networks.NUM_OUTPUTS)])
    one = {name: options[name] for name in options if name == "rule"}
    expected = _trained(optax.sgd(0.05), network=network, **one)
    assert_close(
        _trained(optax.sgd(0.05), make_mesh(2), network=network, **options), expected, 1e-10
    )


@pytest.mark.usefixtures("x64", "quick_compile")
def test_keys_go_to_checkpoints_and_back():
    network = Network([networks.dense(4), _keyed(5)])
    tx, mesh = optax.noisy_sgd(0.05, key=jax.random.key(2)), make_mesh(2)
    frame = jax.ShapeDtypeStruct((sharding.BATCH, 5), "float64")
    init, _ = step.make_train_step(network, squared_error, tx, execution="depth_sharded", mesh=mesh)
    to_modules, from_modules = step.per_module(network, tx, mesh, frame)
    packed = init(jax.random.key(0), frame)
    saved = to_modules(packed)
    assert_close(to_modules(from_modules(saved)), saved, 0)
    assert saved.state[1][1].shape == (2,)
    assert str(jax.random.key_impl(saved.state[1][1])) == "rbg"
    assert jnp.issubdtype(saved.opt_state[0].rng_key.dtype, jax.dtypes.prng_key)
