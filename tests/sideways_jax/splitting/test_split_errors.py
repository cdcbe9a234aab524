"""What cannot be cut, and what is no model: the value, the limit, the fix."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from sideways_jax import boundary, split
from tests.sideways_jax.splitting import models
from tests.sideways_jax.splitting.models import FRAMES


def cut(function, modules=None, params=(), state=(), **options):
    return split(function, FRAMES, modules, variables=(params, state), **options)


def flat(x):
    return x.reshape(x.shape[0], -1)[:, :4]


def one_scan(params, state, frame, train, key):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), flat(frame), params)
    return x, state


def marked(first, second=lambda x, y: x):
    """A function that calls `boundary` once, between two others."""

    def model(params, state, frame, train, key):
        x = boundary(first(flat(frame), params, state, train))
        return second(x, params), state

    return model


@pytest.mark.parametrize("modules", [0, -1, True, 2.5, "4"])
def test_numbers(modules):
    with pytest.raises(ValueError, match="has to be a number of modules, at least 1"):
        cut(models.mlp, modules, *models.mlp_variables())


@pytest.mark.parametrize(
    ("model", "fix"),
    [
        (models.ConvNet, "give an object of it"),
        (3, "a function of"),
        (models.mlp, "give variables=.parameters, state."),
        (lambda rngs: models.NnxNet(rngs), "split.from_nnx.function"),
        (nn.Dense(3).bind({}), "unbind"),
    ],
)
def test_models(model, fix):
    with pytest.raises(ValueError, match=fix):
        split(model, FRAMES, 2)


def test_more_modules_than_can_be_cut():
    with pytest.raises(ValueError, match=r"modules=900: .* can be cut at \d+ places, into \d+ mod"):
        split(models.ConvNet(), FRAMES, 900)
    with pytest.raises(
        ValueError, match=r"(9\d|100)% of its operations are in one equation, 'scan'"
    ):
        cut(one_scan, 5, jnp.zeros((50, 4, 4)))
    with pytest.raises(ValueError, match=r"'outside' is used at both ends.*carry=.'outside',."):
        split(models.tied, FRAMES, 3, variables=models.tied_variables())


def test_no_boundary():
    with pytest.raises(ValueError, match=r"calls sideways_jax.boundary nowhere: .*modules=4"):
        split(models.ConvNet(), FRAMES)


def loop(x, params, state, train):
    return jax.lax.scan(lambda x, _: (boundary(x), None), x, None, 3)[0]


@pytest.mark.parametrize(
    ("model", "params", "why"),
    [
        (marked(loop), (), "boundary is called inside 'scan'"),
        (marked(lambda x, *_: jax.checkpoint(boundary)(x)), (), "inside '(checkpoint|remat2?)'"),
        (
            marked(lambda x, p, *_: x * p["w"], lambda x, p: x + p["w"]),
            {"w": jnp.ones((4, 4))[0, 0]},
            "the parameter 'w' is used on both sides.*carry=.'w',.",
        ),
        (
            marked(lambda x, *_: x > 0, lambda x, p: x.astype(jnp.float32)),
            (),
            r"bool\[4, 4\].* no gradient",
        ),
        (marked(lambda x, *_: x.T, lambda x, p: x.T * 2), (), "first axis is not that of the ex"),
        (marked(lambda x, p, s, train: boundary(x + 1) if train else x + 1), (), "2 times in trai"),
        (
            marked(lambda x, *_: boundary(x + 1), lambda x, p: x * 2),
            (),
            "the same place as the one before",
        ),
        (marked(lambda x, *_: x), (), "on one side"),
    ],
)
def test_boundaries(model, params, why):
    frames = jax.ShapeDtypeStruct((4, 2, 2, 1), jnp.float32)
    with pytest.raises(ValueError, match=why):
        split(model, frames, variables=(params, ()))


def test_state_and_keys_on_both_sides():
    def counter(params, state, frame, train, key):
        x = boundary(jnp.sin(flat(frame)) + state)
        return x * state, state

    with pytest.raises(ValueError, match="the state 'value' is used on both sides"):
        cut(counter, state=jnp.ones(()))

    def same_mask(params, state, frame, train, key):
        x = jnp.sin(flat(frame)) * jax.random.bernoulli(key, 0.5, (1, 4)).astype(jnp.float32)
        x = boundary(jnp.sin(x))
        return x * jax.random.bernoulli(key, 0.5, (1, 4)).astype(jnp.float32), state

    with pytest.raises(ValueError, match="drawn from the same key on both sides"):
        cut(same_mask)


def test_other_frames_than_the_example():
    network, params, state = split(models.ConvNet(), FRAMES, 3)
    with pytest.raises(
        ValueError, match=r"hears float32\[2, 9, 9, 3\].* would be float32\[2, 8, 8, 3\]"
    ):
        network.apply(params, state, jnp.zeros((2, 9, 9, 3)))
    with pytest.raises(ValueError, match=r"float16\[\d.*cut with float32"):
        network.apply(jax.tree.map(lambda x: x.astype(jnp.float16), params), state,
                      jnp.zeros((2, 8, 8, 3)))  # fmt: skip


def test_axes_of_a_mesh():
    model = nn.BatchNorm(axis_name="data", momentum=0.9)
    with pytest.raises(ValueError, match=r"over an axis of a mesh.* without that axis.* data"):
        split(model, FRAMES, 1)


def test_programs_that_depend_on_the_batch():
    def model(params, state, frame, train, key):
        x = flat(frame)
        for _ in range(x.shape[0]):
            x = jnp.sin(x)
        return x, state

    with pytest.raises(ValueError, match="something else for 4 frames than for 2"):
        cut(model, 2)


def test_options():
    with pytest.raises(ValueError, match="unknown skips 'directly'; did you mean 'direct'"):
        split(models.ConvNet(), FRAMES, 2, skips="directly")
    with pytest.raises(ValueError, match="unknown parameter in carry 'outsid'; did you mean 'outs"):
        cut(models.tied, 2, *models.tied_variables(), carry=("outsid",))
    with pytest.raises(ValueError, match="holds its variables"):
        split(models.NnxNet(nnx.Rngs(0)), FRAMES, 2, variables={})
    with pytest.raises(ValueError, match=r"has to return the pair .output, new state."):
        cut(lambda params, state, frame, train, key: flat(frame), 1)
