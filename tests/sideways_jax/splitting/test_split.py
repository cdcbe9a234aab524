"""A model that was cut computes what it computed before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sideways_jax import boundary, from_linen, from_nnx, make_mesh, split, step
from sideways_jax.splitting import SplitNetwork
from tests.sideways_jax.comparison import assert_same
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.splitting import models
from tests.sideways_jax.splitting.comparing import (
    KEY,
    assert_close,
    assert_computes,
    assert_same_program,
)
from tests.sideways_jax.splitting.models import FRAMES, video

pytestmark = pytest.mark.usefixtures("quick_compile")


def as_module(function):
    def apply(params, state, frame, *, train, rng):
        return function(params, state, frame, train, rng)

    return apply


@pytest.mark.parametrize("modules", [1, 2, 4])
def test_function(modules):
    variables = models.mlp_variables()
    network, params, state = split(models.mlp, FRAMES, modules, variables=variables)
    assert isinstance(network, SplitNetwork)
    assert network.depth == modules == len(params) == len(state)
    assert all(jax.tree.leaves(part) for part in params)
    assert_same(network.merge(params, state), variables, 0)
    assert_same_program(network, params, state, as_module(models.mlp))


def test_batch_of_one_and_example_of_one():
    variables = models.mlp_variables()
    one = jax.ShapeDtypeStruct((1, *FRAMES.shape[1:]), FRAMES.dtype)
    for frames, batch in ((FRAMES, 1), (one, 3)):
        network, params, state = split(models.mlp, frames, 3, variables=variables)
        assert_computes(network, params, state, as_module(models.mlp), batch)


@pytest.mark.parametrize("modules", [3, None])
def test_linen(modules):
    """Batch normalisation, dropout and residual connections; automatic, and by boundaries."""
    model = models.ConvNet(marked=modules is None)
    variables = model.init(KEY, jnp.zeros(FRAMES.shape), train=False)
    network, params, state = split(model, FRAMES, modules, variables=variables)
    assert network.depth == 3
    assert_same(network.merge(params, state), variables, 0)
    assert_same_program(network, params, state, from_linen(model).apply)
    if modules:
        assert_computes(network, params, state, from_linen(model).apply)
    frame = video(1)[0][0]
    expected = model.apply(network.merge(params, state), frame, train=False)
    assert_close(network.apply(params, state, frame)[0], expected)


def test_boundaries_say_what_a_module_has():
    network, params, state = split(models.ConvNet(marked=True), FRAMES)
    assert [sorted(part) for part in params] == [
        ["BatchNorm_0", "BatchNorm_1", "Conv_0", "Conv_1"],
        ["BatchNorm_2", "BatchNorm_3", "Conv_2", "Conv_3"],
        ["Dense_0"],
    ]
    assert [sorted(part.get("batch_stats", {})) for part in state] == [
        ["BatchNorm_0", "BatchNorm_1"], ["BatchNorm_2", "BatchNorm_3"], []
    ]  # fmt: skip
    assert network.crossing == (2 * 4 * 4 * 6 * 4, 2 * 4 * 4 * 8 * 4)


def test_nnx():
    model = models.NnxNet(nnx.Rngs(0))
    network, params, state = split(model, FRAMES, 3)
    assert_computes(network, params, state, from_nnx(model).apply)
    frame = video(1)[0][0]
    trained = jax.tree.map(lambda x: x + 0.1, params)
    nnx.update(model, network.merge(trained, state))
    model.eval()
    assert_close(network.apply(trained, state, frame)[0], model(frame))


def test_init_draws_what_the_model_draws():
    """Every module from a key of its own, or copies of the variables that were given."""
    model = models.ConvNet()
    network, params, state = split(model, FRAMES, 3, key=KEY)
    drawn_params, drawn_state = from_linen(model).init(KEY, FRAMES)
    assert_same(network.merge(params, state), {"params": drawn_params, **drawn_state}, 0)
    drawn, new = network.init(jax.random.key(5), FRAMES)
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    assert_same(new, state, 0)
    kernels = [(a, b) for a, b in zip(map(kernel, drawn), map(kernel, params), strict=True)]
    assert all(0.5 < float(a.std() / b.std()) < 2 and not np.allclose(a, b) for a, b in kernels)
    given, start, _ = split(model, FRAMES, 3, variables=network.merge(params, state))
    again, _ = given.init(jax.random.key(5), FRAMES)
    assert_same(again, start, 0)
    assert_same(start, params, 0)


def kernel(part):
    return next(x for x in jax.tree.leaves(part) if x.ndim > 1)


@pytest.mark.parametrize(
    "execution",
    [
        step.TimeParallel(),
        pytest.param(step.Pipeline(make_mesh(depth=2)), marks=pytest.mark.full),
        step.ProgramPerDevice(make_mesh(depth=2)),
    ],
    ids=lambda execution: type(execution).__name__,
)
def test_executions_agree(execution):
    """Sideways, with dropout and running statistics."""
    network, params, state = split(models.ConvNet(rate=0.3), FRAMES, 3)
    frames, targets = video(6)

    def episode(execution):
        return step.episode_gradients(
            network, squared_error, params, state, frames, targets,
            rule="sideways", execution=execution, rng=KEY,
        )  # fmt: skip

    actual, expected = episode(execution), episode(step.Scan())
    assert_close((actual.grads, actual.state), (expected.grads, expected.state), 1e-5)


def test_shares_of_the_batch():
    """Every device has half of it; without a key in training."""
    variables = models.mlp_variables()
    network, params, state = split(models.mlp, FRAMES, 3, variables=variables)
    frames, targets = video(6, batch=4)

    def gradients(execution):
        return step.episode_gradients(
            network, squared_error, params, state, frames, targets, execution=execution
        ).grads

    assert_close(gradients(step.TimeParallel(make_mesh(1, data=2))), gradients(step.Scan()))


def test_train_step():
    """`make_train_step` draws the parameters by itself, and the loss goes down."""
    network, _, _ = split(models.ConvNet(rate=0.0), FRAMES, 3)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(0.05))
    frames, targets = video(1)
    frames, targets = (jnp.broadcast_to(x, (7, *x.shape[1:])) for x in (frames, targets))
    train_state, losses = init(KEY, frames[0]), []
    for _ in range(4):
        train_state, metrics = jax.jit(train_step)(train_state, frames, targets)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_derivatives_of_their_own():
    """They survive: at 0 a relu has the gradient 0, and a rounded value that of the value."""

    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))

    def model(params, state, frame, train, key):
        x = frame.reshape(frame.shape[0], -1)[:, :4]
        x = jax.nn.relu(boundary(x * params["zero"]))
        x = boundary(rounded(x + params["shift"]))
        return jax.checkpoint(jnp.sin)(x * params["scale"]), state

    weights = {"zero": jnp.zeros((1, 4)), "shift": jnp.ones((1, 4)), "scale": jnp.ones((1, 4))}
    network, params, state = split(model, FRAMES, variables=(weights, ()))
    assert_computes(network, params, state, as_module(model))
    frame = jnp.ones(FRAMES.shape)
    grads = jax.grad(lambda params: network.apply(params, state, frame)[0].sum())(params)
    (zero, shift), cos = (grads[0]["zero"], grads[1]["shift"]), np.cos(1.0)
    np.testing.assert_array_equal(zero, 0)
    np.testing.assert_allclose(shift, FRAMES.shape[0] * cos, rtol=1e-6)


def test_frames_that_are_pytrees():
    """Of integers, with a part that the second module needs: by a shortcut from the frame."""

    def model(params, state, frame, train, key):
        image = boundary(frame["image"].astype(jnp.float32) * params["first"] / 255)
        return image + params["second"] * frame["sound"].astype(jnp.float32), state

    frame = {"image": jnp.full((2, 4), 200, jnp.uint8), "sound": jnp.full((2, 4), 3, jnp.int32)}
    variables = {"first": jnp.ones(()), "second": jnp.ones(())}, ()
    with pytest.raises(
        ValueError, match=r"a value int32\[2, 4\] crosses it, which has no gradient"
    ):
        split(model, frame, variables=variables)
    network, params, state = split(model, frame, variables=variables, skips="direct")
    assert network.shortcuts == ((-1, 1),)
    episode = step.episode_gradients(
        network, squared_error, params, state, *jax.tree.map(lambda x: x[None].repeat(3, 0),
        (frame, jnp.zeros((2, 4)))), rule="sideways",
    )  # fmt: skip
    output = 200 / 255 + 3
    np.testing.assert_allclose(episode.outputs[-1], output, rtol=1e-6)
    first, second = (sum(jax.tree.leaves(part)) for part in episode.grads)
    np.testing.assert_allclose(second / first, 3 / (200 / 255), rtol=1e-5)


def test_draws_are_independent_and_as_often():
    """Of two units that are dropped in two modules all four cases are equally frequent."""

    def model(params, state, frame, train, key):
        keys = jax.random.split(key)
        one = boundary(frame + jax.random.bernoulli(keys[0], 0.5, frame.shape).astype(frame.dtype))
        return one + 2 * jax.random.bernoulli(keys[1], 0.5, frame.shape).astype(frame.dtype), state

    frame = jnp.zeros((4000, 1))
    network, params, state = split(model, frame[:2], variables=((), ()))
    assert network.depth == 2
    cut, _ = network.apply(params, state, frame, train=True, rng=KEY)
    uncut, _ = model((), (), frame, True, KEY)
    for values in (cut, uncut):
        np.testing.assert_allclose(np.bincount(values[:, 0].astype(int)) / 4000, 0.25, atol=0.03)
    assert not np.array_equal(cut, uncut)


def test_the_model_is_traced_once_for_all_modules():
    calls = []

    def model(*arguments):
        calls.append(arguments[3])
        return models.mlp(*arguments)

    network, params, state = split(model, FRAMES, 4, variables=models.mlp_variables())
    frames = [jnp.zeros((batch, *FRAMES.shape[1:])) for batch in (3, 5)]
    before = len(calls)
    network.apply(params, state, frames[0])
    assert len(calls) == before + 1
    jax.jit(network.apply)(params, state, frames[0])
    network.apply(params, state, frames[0])
    assert len(calls) <= before + 2
    network.apply(params, state, frames[1])
    assert len(calls) <= before + 3
