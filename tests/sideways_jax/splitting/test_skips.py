"""What jumps over a module: along with the activations, or as a shortcut."""

import jax
import jax.numpy as jnp
import pytest

from sideways_jax import boundary, from_linen, split, step
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


@pytest.mark.parametrize("skips", ["along", "direct"])
@pytest.mark.parametrize("modules", [4, None])
def test_u_net(skips, modules):
    model = models.UNet(marked=modules is None)
    network, params, state = split(model, FRAMES, modules, skips=skips)
    assert_same_program(network, params, state, from_linen(model).apply)
    if modules is None:
        assert network.shortcuts == (((1, 3), (0, 4)) if skips == "direct" else ())


def test_dense_net_in_one_word():
    """Every module hears the features of all modules below it, and the frame."""
    model = models.DenseNet(marked=True)
    network, params, state = split(model, FRAMES, skips="direct")
    assert network.depth == 5
    assert set(network.shortcuts) == {(j, i) for i in range(5) for j in range(-1, i - 1)}
    assert_computes(network, params, state, from_linen(model).apply)  # It adds in another order.
    along, _, _ = split(model, FRAMES)
    assert not along.shortcuts


def skipping(params, state, frame, train, key):
    """The first layer goes to the last, too."""
    first = boundary(jnp.tanh(frame.reshape(frame.shape[0], -1) @ params["first"]))
    second = boundary(jnp.tanh(first @ params["second"]))
    return jnp.concatenate([second, first], -1) @ params["last"], state


def skipping_variables():
    keys = jax.random.split(KEY, 3)
    sizes = {"first": (192, 5), "second": (5, 5), "last": (10, 4)}
    return {
        name: jax.random.normal(key, size) / size[0] ** 0.5
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }, ()


@pytest.mark.parametrize("skips", ["along", "direct"])
def test_constant_frames_give_backprop(skips):
    """Through a shortcut the newer frame is then the same frame; else the two ways differ."""
    network, params, state = split(skipping, FRAMES, variables=skipping_variables(), skips=skips)
    assert network.shortcuts == (((0, 2),) if skips == "direct" else ())
    frames, targets = video(7)

    def episode(rule, frames, targets):
        return step.episode_gradients(
            network, squared_error, params, state, frames, targets,
            rule=rule, execution="time_parallel",
        )  # fmt: skip

    constant = [jnp.broadcast_to(x[:1], x.shape) for x in (frames, targets)]
    assert_close(episode("sideways", *constant).grads, episode("backprop", *constant).grads, 1e-5)
    moving = episode("sideways", frames, targets).outputs[-1]
    late = network.apply(params, state, frames[-3])[0]  # Of D-1 steps ago.
    assert (float(jnp.abs(moving - late).max()) < 1e-5) == (skips == "along")


def test_tied_weights_travel():
    variables = models.tied_variables()

    def apply(params, state, frame, *, train, rng):
        return models.tied(params, state, frame, train, rng)

    network, params, state = split(models.tied, FRAMES, 3, variables=variables, carry=("outside",))
    assert "outside" in params[0] and sum("inside" in part for part in params) == 1
    assert_computes(network, params, state, apply)
    frames, targets = video(5)

    def loss(params):
        return jnp.mean(
            jax.vmap(lambda x, y: squared_error(models.tied(params, (), x, True, None)[0], y))(
                frames, targets
            )
        )

    episode = step.episode_gradients(
        network, squared_error, params, state, frames, targets, rule="backprop"
    )
    assert_close(network.merge(episode.grads, state)[0], jax.grad(loss)(variables[0]))
