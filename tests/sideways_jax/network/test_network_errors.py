"""What is wrong with a network is said when it is made or initialised, with the module's number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from sideways_jax import Module, Network, cut, sequential
from tests.sideways_jax import networks
from tests.sideways_jax.networks import dense

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)
KEY = np.array([0, 1], np.uint32)


def _module(apply, params=(), state=()):
    return Module(lambda key, x: (params, state), apply)


def _function(function, params=(), state=()):
    """A module that computes `function(x, params, train)` and keeps its state."""
    return _module(lambda params, state, x, *, train, rng: (function(x, params, train), state),
                   params, state)  # fmt: skip


def _keeping(function, state):
    """A module that passes its input on, and whose state becomes `function(state, train)`."""
    return _module(lambda params, state, x, *, train, rng: (x, function(state, train)), (), state)


def _init(module, x=X):
    """As the second of three modules, so that it is number 1."""
    return Network([dense(4), module, dense(4)]).init(KEY, x)


ZERO = np.zeros((), np.float32)

BROKEN = {
    "a single value": (_module(lambda params, state, x, *, train, rng: x), "the pair .y, new_sta"),
    "three values": (
        _module(lambda params, state, x, *, train, rng: (x, state, x)),
        "returned 3 values",
    ),
    "init": (Module(lambda key, x: {"kernel": ZERO}, dense(4).apply), "the pair .params, state"),
    "a number": (
        _function(lambda x, params, train: x * params["a"], {"a": 2.0}),
        r"\['a'\] is 2.0",
    ),
    "integers": (
        _function(lambda x, params, train: x, (np.ones(3, np.int32),)),
        r"\[0\] has dtype int32.*state",
    ),
    "a number as state": (_function(lambda x, params, train: x, (), {"n": 0}), r"\['n'\] is 0"),
    "dtype in training": (
        _function(lambda x, params, train: x.astype(jnp.bfloat16) if train else x),
        r"bfloat16\[3, 4\] in training .*float32\[3, 4\] in evaluation",
    ),
    "shape in training": (
        _function(lambda x, params, train: x[:, :2] if train else x),
        r"float32\[3, 2\] in training .*float32\[3, 4\] in evaluation",
    ),
    "structure in training": (
        _function(lambda x, params, train: {"y": x, "more": x} if train else {"y": x}),
        r"\['more'\] float32\[3, 4\].* in training",
    ),
    "not trainable": (
        _function(lambda x, params, train: 1 / 0 if train else x),
        r"in training \(train=True\), division by zero",
    ),
    "state that grows": (
        _keeping(lambda state, train: (*state, ZERO), ()),
        r"state is nothing before .*\[0\] float32\[\] after",
    ),
    "state of another dtype": (
        _keeping(lambda state, train: state.astype(jnp.bfloat16), ZERO),
        r"float32\[\] before .*bfloat16\[\] after",
    ),
    "state of another shape, in training": (
        _keeping(lambda state, train: jnp.stack([state, state]) if train else state, ZERO),
        r"before a call in training.*float32\[2\] after",
    ),
    "no batch axis": (
        _function(lambda x, params, train: x.mean(0)),
        r"float32\[4\], has lost the batch axis of 3",  # No multiple of 3.
    ),
    "no output": (_function(lambda x, params, train: ()), "nothing, has lost the batch axis"),
    "a layer": (
        sequential([dense(4), _module(lambda params, state, x, *, train, rng: x)]),
        "layer 1 .*the pair",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_init_names_the_module_and_what_is_wrong_with_it(name):
    module, message = BROKEN[name]
    with pytest.raises(ValueError, match=rf"(?s)module 1 \(0-based, of 3\).*{message}"):
        _init(module)


@pytest.mark.parametrize("name", ["dtype in training", "integers", "not trainable"])
def test_what_is_wrong_in_training_alone_is_checked_for_training_alone(name):
    module, message = BROKEN[name]
    network = Network([module])
    variables = module.init(KEY, X)
    variables = tuple((tree,) for tree in variables)
    assert network.activation_shapes(*variables, X)[0].shape == X.shape
    with pytest.raises(ValueError, match=rf"(?s)module 0.*{message}"):
        network.activation_shapes(*variables, X, train=True, rng=KEY)


def test_frames_may_be_folded_into_the_batch_and_keys_be_a_state():
    fold = _function(lambda x, params, train: x.reshape(6, 2))
    unfold = _function(lambda x, params, train: x.reshape(3, 4), (), jax.random.key(0))
    network = Network([fold, unfold])
    params, state = network.init(KEY, X)
    shapes = network.activation_shapes(params, state, X, train=True)
    assert [shape.shape for shape in shapes] == [(6, 2), (3, 4)]


def test_a_mean_over_the_mesh_can_be_initialised_without_one():
    module = _function(lambda x, params, train: jax.lax.pmean(x, "data") if train else x)
    Network([module]).init(KEY, X)


def test_a_key_for_training_is_there():
    network = Network([networks.chain(networks.dense(4), networks.dropout())])
    params, state = network.init(KEY, X)
    network.activation_shapes(params, state, X, train=True, rng=KEY)
    with pytest.raises(ValueError, match="needs a key"):
        network.activation_shapes(params, state, X, train=True)


def test_apply_does_not_take_the_first_example_for_the_output():
    x = jnp.ones((2, 4))  # Two examples look like a pair.
    network = Network([_module(lambda params, state, x, *, train, rng: x)])
    with pytest.raises(ValueError, match=r"apply of module 0 has to return the pair"):
        network.apply(((),), ((),), x)


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (jax.ShapeDtypeStruct((), jnp.float32), r"float32\[\]"),
        (
            {"left": X, "right": jax.ShapeDtypeStruct((2, 4), jnp.float32)},
            r"\['right'\] float32\[2",
        ),
        ({"left": X, "right": jax.ShapeDtypeStruct((), jnp.float32)}, r"\['right'\] float32\[\]"),
        ((), "nothing"),
    ],
)
def test_frames_without_a_common_batch_axis(frame, shown):
    network = Network([_function(lambda x, params, train: jax.tree.leaves(x)[0])])
    for ask in (lambda: network.init(KEY, frame),
                lambda: network.activation_shapes(((),), ((),), frame)):  # fmt: skip
        with pytest.raises(ValueError, match=f"(?s)leading batch axis.*{shown}"):
            ask()


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([dense(3), linen.Dense(6)], r"module 1 .*Dense of Flax.*from_linen\(Dense"),
        ([linen.Dense], r"module 0 .*from_linen\(Dense"),
        ([nnx.Linear(2, 2, rngs=nnx.Rngs(0))], r"from_nnx\(Linear"),
        ([dense(3), jnp.tanh], r"module 1 .*sideways_jax.Module\(init, apply\)"),
        ([Module], r"module 0 .*give a sideways_jax.Module"),
        (dense(3), r"\[module\]"),
        (linen.Dense(6), "give a list of modules"),
    ],
)
@pytest.mark.parametrize("make", [Network, sequential])
def test_what_is_no_module(make, modules, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(modules)


def test_a_layer_of_flax_in_a_cut():
    with pytest.raises(ValueError, match="from_linen"):
        cut([dense(3), linen.Dense(6)], (1, 1))


def test_packed_parameters_say_how_to_unpack_them():
    network = Network([dense(4), dense(4)])
    params, state = network.init(KEY, X)
    packed = {"float32 000": jnp.zeros((2, 20)), "float32 001": jnp.zeros((2, 4))}
    with pytest.raises(ValueError, match=r"(?s)params.*packed.*to_modules\(train_state\).params"):
        network.apply(packed, state, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"(?s)state.*to_modules\(train_state\).state"):
        network.apply(params, packed, jnp.ones((3, 4)))


def test_init_does_not_give_away_the_arrays_that_a_module_was_made_from():
    weights, mean = jnp.full((1, 4), 2.0), jnp.zeros(4)
    module = _function(lambda x, params, train: x * params, weights, mean)
    network = Network([module, module])  # Twice: no buffer can be donated twice.
    variables = network.init(KEY, X)
    jax.jit(lambda tree: jax.tree.map(jnp.sin, tree), donate_argnums=0)(variables)
    np.testing.assert_array_equal(weights, np.full((1, 4), 2.0, np.float32))
    np.testing.assert_array_equal(mean, np.zeros(4, np.float32))


def test_training_is_checked_with_dropout_counters_and_dictionaries():
    network, params, state = networks.start(networks.mixed_network, 6)
    frame = jax.ShapeDtypeStruct((3, *networks.PIXELS), jnp.float32)
    shapes = network.activation_shapes(params, state, frame, train=True, rng=KEY)
    assert shapes == network.activation_shapes(params, state, frame)
    assert shapes[-1].shape == (3, networks.NUM_OUTPUTS)
