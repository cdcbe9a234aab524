"""Optimisers where the parameters are: what works, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax.pipeline import local_optimizer
from sideways_jax.pipeline.local_optimizer import check_local, norms, stand_ins, view

SHAPES = ({"kernel": (6, 4), "bias": (1, 4)}, {"kernel": (4, 5)}, {"kernel": (5, 3), "scale": ()})
GROUPS = ((0,), (1, 2))


def _tree(seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(draw.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x),
    )


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def _stateless(update):
    return optax.stateless(lambda updates, params: update(updates, params))


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _scaled(updates, factor):
    return jax.tree.map(lambda g: g * factor, updates)


def _scale_per_leaf():
    """A scalar of state for every leaf."""

    def init(params):
        return jax.tree.map(lambda p: jnp.ones((), p.dtype), params)

    def update(updates, state, params=None):
        state = jax.tree.map(lambda g, s: 0.9 * s + 0.1 * jnp.mean(g**2), updates, state)
        return jax.tree.map(lambda g, s: g / jnp.sqrt(s), updates, state), state

    return optax.GradientTransformation(init, update)


def _delayed(measure):
    """Scales by what was measured at the last update."""

    def update(updates, state, params=None):
        return _scaled(updates, state), measure(updates)

    return optax.GradientTransformation(lambda params: jnp.ones(()), update)


def _is_matrix(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


LOCAL = {
    "clip, adam": lambda: optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(0.1)),
    "masked": lambda: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), _is_matrix), optax.sgd(0.1)
    ),
    "labels": lambda: optax.multi_transform(
        {True: optax.adam(0.1), False: optax.sgd(0.2)}, _is_matrix
    ),
    "names": lambda: optax.multi_transform(
        {"kernel": optax.lion(0.1), "bias": optax.sgd(0.1), "scale": optax.set_to_zero()},
        lambda params: tuple({name: name for name in module} for module in params),
    ),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=3),
    "mean square of a leaf": lambda: optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1)),
    "adaptive clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
    "scalars": lambda: optax.chain(_scale_per_leaf(), optax.sgd(0.1)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "last norm": lambda: optax.chain(_delayed(optax.tree.norm), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", LOCAL)
def test_every_device_gives_the_updates_of_its_modules(name):
    """Without a mesh: what each device would see, against the whole tree, for three updates."""
    tx, params = LOCAL[name](), _tree(0)
    owner = check_local(tx, jax.eval_shape(lambda: params), GROUPS)
    opt_state, expected = tx.init(params), params
    own = [{i: params[i] for i in group} for group in GROUPS]
    nothing = stand_ins(jax.eval_shape(lambda: params))
    states = [tx.init(view(one, nothing)) for one in own]
    for number in range(1, 4):
        grads = _tree(number)
        updates, opt_state = tx.update(grads, opt_state, expected)
        expected = optax.apply_updates(expected, updates)
        others = stand_ins(jax.eval_shape(lambda: params), norms(grads))
        for n, group in enumerate(GROUPS):
            seen, states[n] = tx.update(
                view({i: grads[i] for i in group}, others), states[n], view(own[n], nothing)
            )
            own[n] = {i: optax.apply_updates(own[n][i], seen[i]) for i in group}
    for group, one in zip(GROUPS, own, strict=True):
        for i in group:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one[i],
                         expected[i])  # fmt: skip

    def check(place, whole, *by_device):
        device = 0 if place is None else next(n for n, g in enumerate(GROUPS) if place in g)
        np.testing.assert_allclose(by_device[device], whole, rtol=1e-5, atol=1e-7)

    jax.tree.map(check, owner, opt_state, *states, is_leaf=lambda x: x is None)


REFUSED = {
    "momentum, clip": lambda: optax.chain(
        optax.sgd(0.1, momentum=0.9), optax.clip_by_global_norm(0.01)
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "largest": lambda: _stateless(
        lambda u, _: _scaled(u, 1 / jnp.max(jnp.stack([jnp.max(g) for g in jax.tree.leaves(u)])))
    ),
    "norm of parameters": lambda: _stateless(lambda u, p: _scaled(u, optax.tree.norm(p))),
    "another module": lambda: _stateless(lambda u, _: _scaled(u, jnp.sum(u[0]["kernel"]))),
    "number of parameters": lambda: _stateless(lambda u, _: _scaled(u, 1 / _size(u))),
    "global root mean square": lambda: _stateless(
        lambda u, _: _scaled(u, optax.tree.norm(u) / _size(u) ** 0.5)
    ),
    "mean square of module 0": lambda: _stateless(
        lambda u, _: _scaled(u, jnp.mean(jnp.square(u[0]["kernel"])))
    ),
    "delayed mean of module 0": lambda: _delayed(lambda u: jnp.mean(u[0]["kernel"])),
    "swapped": lambda: _stateless(
        lambda u, _: (u[0], u[1], {**u[2], "scale": jnp.sum(u[1]["kernel"])})
    ),
    "labels by size": lambda: optax.multi_transform(
        {True: optax.adam(0.1), False: optax.sgd(0.2)},
        lambda params: jax.tree.map(lambda p: p.size > 10, params),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_different_is_refused(name):
    with pytest.raises(ValueError, match=r"may give other updates .* or execution='scan'"):
        check_local(REFUSED[name](), jax.eval_shape(lambda: _tree(0)), GROUPS)


@pytest.mark.parametrize("name", REFUSED)
def test_on_one_device_anything_goes(name):
    check_local(REFUSED[name](), jax.eval_shape(lambda: _tree(0)), ((0, 1, 2),))


def test_the_norm_of_norms_is_the_norm():
    grads = _tree(1)
    leaf_norms = local_optimizer.norms(grads)
    assert optax.tree.norm(leaf_norms) == pytest.approx(float(optax.tree.norm(grads)))
    seen = stand_ins(jax.eval_shape(lambda: grads), leaf_norms)
    assert jax.tree.map(jnp.ndim, seen) == jax.tree.map(jnp.ndim, grads)
    assert optax.tree.norm(view({1: grads[1]}, seen)) == pytest.approx(
        float(optax.tree.norm(grads))
    )
