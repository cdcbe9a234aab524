"""Optimizers that a train step cannot use: a clear error before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from sideways_jax.training.division import check_local
from sideways_jax.training.optimizer_check import check_optimizer

PARAMS = ({"kernel": jnp.ones((3, 2))}, (), {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(())})


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _stateless(update):
    return optax.stateless(lambda updates, params: update(updates))


NEEDS = r"a train step calls {}.* fails with {}.*has nothing more to give"
ERRORS = {
    "value=": (
        lambda: optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau()),
        NEEDS.format(r"update\(gradients, state, params\),", "TypeError: .* 'value'"),
    ),
    "polyak": (optax.polyak_sgd, NEEDS.format("update", "TypeError: .* 'value'")),
    "line search": (optax.lbfgs, NEEDS.format("update", "TypeError: .* 'value', 'grad', ")),
    "momo": (contrib.momo, NEEDS.format("update", "TypeError: .* 'value'")),
    "obj_fn=": (lambda: contrib.sophia(0.1), NEEDS.format("update", "ValueError: obj_fn must")),
    "grad_fn=": (
        lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True),
        NEEDS.format("update", "ValueError: grad_fn must be provided"),
    ),
    "lookahead": (
        lambda: optax.lookahead(optax.sgd(0.1), 2, 0.5),
        NEEDS.format("update", "AttributeError: 'tuple' object has no attribute 'fast'"),
    ),
    "other parameters": (
        lambda: _stateless(lambda u: jax.tree.map(jnp.add, u, PARAMS[:1])),
        r"params is a tuple with a pytree for every module, and that fails with ValueError",
    ),
    "other structure": (lambda: _stateless(lambda u: u[:1]), "another structure than the param"),
    "other shape": (
        lambda: _stateless(lambda u: jax.tree.map(lambda g: g[None], u)),
        r"params\[0\]\['kernel'\] of shape \[3, 2\] an update of shape \[1, 3, 2\]",
    ),
    "not called": (lambda: optax.adam, r"not an optax transformation.*not optax.sgd"),
    "a number": (lambda: 0.1, r"0.1 is not an optax transformation"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_clear_error(name):
    make, expected = ERRORS[name]
    with pytest.raises(ValueError, match=expected):
        check_optimizer(make(), PARAMS)
    with pytest.raises(ValueError, match=expected):
        check_local(make(), jax.eval_shape(lambda: PARAMS), ((0,), (1, 2)))


def test_what_can_be_used():
    check_optimizer(optax.adam(0.1), PARAMS)
    check_optimizer(optax.MultiSteps(optax.adam(0.1), 2), jax.eval_shape(lambda: PARAMS))
    # Looks at values, so it works without jax.jit only, and cannot be checked.
    check_optimizer(_stateless(lambda u: u if u[0]["kernel"].sum() > 0 else u[::1]), PARAMS)
    check_optimizer(_stateless(lambda u: jax.tree.map(np.sin, u)), PARAMS)
    # One number for all elements.
    check_optimizer(_stateless(lambda u: jax.tree.map(jnp.sum, u)), PARAMS)
