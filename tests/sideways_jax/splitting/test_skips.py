"""What jumps over a module: along with the activations, or as a shortcut."""

import jax
import jax.numpy as jnp
import pytest

from sideways_jax import from_linen, split, step
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
    assert_same_program(network, params, state, from_linen(model).apply)
    along, _, _ = split(model, FRAMES)
    assert not along.shortcuts


@pytest.mark.parametrize("skips", [pytest.param("along", marks=pytest.mark.full), "direct"])
def test_constant_frames_give_backprop(skips):
    """Through a shortcut the newer frame is then the same frame."""
    network, params, state = split(models.UNet(marked=True), FRAMES, skips=skips)
    frames, targets = video(1)
    frames, targets = (jnp.broadcast_to(x, (11, *x.shape[1:])) for x in (frames, targets))
    grads = [
        step.episode_gradients(
            network, squared_error, params, state, frames, targets,
            rule=rule, execution="time_parallel",
        ).grads
        for rule in ("sideways", "backprop")
    ]  # fmt: skip
    assert_close(*grads, 1e-5)


def test_direct_skips_are_newer():
    """In the pipeline the two ways of a skip differ, while frames differ."""
    frames, targets = video(11)
    outputs = []
    for skips in ("along", "direct"):
        network, params, state = split(models.UNet(marked=True), FRAMES, skips=skips, key=KEY)
        episode = step.episode_gradients(
            network, squared_error, params, state, frames, targets, rule="sideways", train=False
        )
        outputs.append(episode.outputs[-1])
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-3


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
