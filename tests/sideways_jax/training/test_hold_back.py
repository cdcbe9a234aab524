"""Which module the parts of an optimizer's state belong to, and what is held back with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from sideways_jax import Module, Network, step
from sideways_jax.training.hold_back import hold_back, owners
from sideways_jax.training.optimizer_check import check_optimizer
from tests.sideways_jax.comparison import assert_same
from tests.sideways_jax.networks import squared_error


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _listed(decay):
    """Momentum, with a state that is not shaped like the parameters: a list of leaves."""

    def init(params):
        return [jnp.zeros_like(p) for p in jax.tree.leaves(params)]

    def update(updates, state, params=None):
        state = [decay * m + g for m, g in zip(state, jax.tree.leaves(updates), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), state), state

    return optax.GradientTransformation(init, update)


def _ages():
    """Numbers for every parameter that no gradient goes into."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros(())

    def update(updates, state, params=None):
        ages, count = state
        ages = jax.tree.map(lambda age: age + 1, ages)
        return jax.tree.map(lambda g, age: g / age, updates, ages), (ages, count + 1)

    return optax.GradientTransformation(init, update)


# Module 0 has a number and a vector, 1 nothing, 2 a number, 3 a matrix.
LIKE_PARAMS = [0, 0, 2, 3]
OWNERS = {
    "momentum": (lambda: optax.trace(0.9), LIKE_PARAMS),
    "momentum, clip": (
        lambda: optax.chain(optax.trace(0.9), optax.clip_by_global_norm(0.1)), LIKE_PARAMS
    ),
    "clip, listed momentum": (
        lambda: optax.chain(optax.clip(0.1), _listed(0.9)), LIKE_PARAMS
    ),
    "adam": (lambda: optax.scale_by_adam(), [None, *LIKE_PARAMS, *LIKE_PARAMS]),
    "schedule-free": (
        lambda: contrib.schedule_free_sgd(0.1), [None, None, None, None, *LIKE_PARAMS]
    ),
    "a number for every leaf": (lambda: optax.scale_by_novograd(), [
        None, *LIKE_PARAMS, *LIKE_PARAMS
    ]),
    "masked": (
        lambda: optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim == 0, p)),
        [0, 2],
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.trace(0.9), 2),
        [None, None, *LIKE_PARAMS, *LIKE_PARAMS],
    ),
    "injected": (
        lambda: optax.inject_hyperparams(optax.trace)(decay=0.9), [None, None, *LIKE_PARAMS]
    ),
    "ages": (_ages, [*LIKE_PARAMS, None]),
    "keys": (lambda: optax.add_noise(0.1, 0.5, key=jax.random.key(0)), [None, None]),
    "global sums": (
        lambda: contrib.prodigy(), [*LIKE_PARAMS * 4, None, None, None],
    ),
}  # fmt: skip


def _params():
    return {"a": jnp.ones(()), "b": jnp.ones(3)}, (), jnp.ones(()), {"c": jnp.ones((2, 2))}


@pytest.mark.parametrize("name", OWNERS)
def test_owners(name):
    make, expected = OWNERS[name]
    found = owners(make(), _params())
    assert jax.tree.leaves(found, is_leaf=lambda i: i is None) == expected


def test_nothing_of_a_module_without_gradients_changes():
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.scale_by_novograd())
    params = _params()
    old = tx.init(params)
    _, new = tx.update(jax.tree.map(jnp.ones_like, params), old, params)
    _, newer = tx.update(jax.tree.map(jnp.zeros_like, params), new, params)
    held = hold_back(tx, jnp.asarray([False, True, True, False]), newer, new, params)[1]
    assert held.count == newer[1].count == 2
    for part in ("mu", "nu"):
        actual, before, after = (getattr(s, part) for s in (held, new[1], newer[1]))
        assert_same((actual[0], actual[3]), (before[0], before[3]), atol=0)
        assert_same(actual[2], after[2], atol=0)
        assert not np.allclose(before[2], after[2])


# Numbers and vectors of one element ---------------------------------------------------------------


def _scaling(shape):
    return Module(
        lambda key, x: (jnp.full(shape, 0.7, x.dtype), ()),
        lambda params, state, x, *, train, rng: (jnp.sin(params * x), state),
    )


OPTIMIZERS = {
    "schedule-free": lambda: contrib.schedule_free_sgd(0.3),
    "momentum, clip": lambda: optax.chain(
        optax.sgd(0.3, momentum=0.9), optax.clip_by_global_norm(0.1)
    ),
    "listed momentum": lambda: optax.chain(_listed(0.9), optax.scale(-0.1)),
    "novograd": lambda: optax.novograd(0.1),
    "ages": lambda: optax.chain(_ages(), optax.scale(-0.1)),
}


def _online(tx, shape):
    network = Network([_scaling(shape)] * 3)
    draw = np.random.default_rng(0)
    frames, targets = (jnp.asarray(draw.normal(size=(9, 2, 1))) for _ in range(2))
    init, train_step = step.make_train_step(network, squared_error, tx, update_every=1)
    train_state = init(jax.random.key(0), frames[0])
    train_state, _ = jax.jit(train_step)(train_state, frames, targets)
    return jax.tree.map(jnp.ravel, (train_state.params, jax.tree.leaves(train_state.opt_state)))


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_number_is_held_back_like_a_vector_of_one_element(name):
    one, vector = (_online(OPTIMIZERS[name](), shape) for shape in ((), (1,)))
    assert_same(one, vector)


# What belongs to several modules ------------------------------------------------------------------


def test_a_vector_of_all_parameters_cannot_be_held_back():
    tx = optax.flatten(optax.adam(0.1))
    expected = (
        r"update_every .* \[0\]\.mu of that state, an array .*, belongs to several modules: "
        r"arrays of .*optax\.flatten .*update_every=None"
    )
    with pytest.raises(ValueError, match=expected):
        owners(tx, _params())
    with pytest.raises(ValueError, match=expected):
        check_optimizer(tx, _params(), hold=True)
    with pytest.raises(ValueError, match=expected):
        _online(tx, (2,))
    with pytest.raises(ValueError, match="numbers of modules are joined"):
        _online(tx, ())
    check_optimizer(tx, _params())
    owners(tx, ({"one": jnp.ones(3), "module": jnp.ones(())},))
