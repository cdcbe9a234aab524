"""Comparing a model with the network that it was cut into."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.splitting.models import FRAMES, video
from tests.sideways_jax.splitting.same_program import result_names

KEY = jax.random.key(7)
ROUNDING = 1e-6  # in float32


def with_one_key(network, params, state, frame, *, train, rng):
    """The network with the same key in all modules, so that it draws what the original draws."""
    sent, new_state = {-1: frame}, []
    for i, module in enumerate(network.modules):
        heard = [sent[j] for j in network.wiring.sources[i]]
        x = tuple(heard) if len(heard) > 1 else heard[0]
        sent[i], new = module.apply(params[i], state[i], x, train=train, rng=rng)
        new_state.append(new)
    return sent[network.depth - 1], tuple(new_state)


def whole(network, params, state):
    """Parameters and state as the original's module has them, whatever `merge` makes of them."""
    return network.parts._replace(variables=lambda *pair: pair).merge(params, state)


def assert_computes(network, params, state, apply, batch=3, frames=FRAMES):
    """Fails unless outputs, new state and gradients are those of the original, in both modes.

    Args:
      network, params, state: the model, cut.
      apply: the original, `apply(params, state, frame, *, train, rng)`.
      batch: another one than that of the example.
      frames: the example.
    """
    frame, target = (x[0] for x in video(1, batch, like=frames))
    original = whole(network, params, state)

    def cut(params, state, frame, *, train, rng):
        return with_one_key(network, params, state, frame, train=train, rng=rng)

    for train in (False, True):

        def loss(params, state, model, train=train):
            rng = KEY if train else None
            output, new_state = model(params, state, frame, train=train, rng=rng)
            return squared_error(output, target), (output, new_state)

        gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
        expected_grads, (expected, expected_state) = gradient(*original, apply)
        grads, (actual, new_state) = gradient(params, state, cut)
        assert_close(actual, expected)
        assert_close(whole(network, grads, new_state), (expected_grads, expected_state))
    output, _ = network.apply(params, state, frame)  # Evaluation needs no key.
    assert_close(output, apply(*original, frame, train=False, rng=None)[0])


def assert_same_program(network, params, state, apply, frames=FRAMES, batch=3):
    """Fails unless outputs, new state and gradients are computed by the same equations."""
    frames = jax.ShapeDtypeStruct((batch, *frames.shape[1:]), frames.dtype)
    for train in (False, True):

        def loss(params, state, frame, rng, model, train=train):
            output, new_state = model(params, state, frame, train=train, rng=rng)
            return jnp.sum(jnp.square(output)), (output, new_state)

        def cut(params, state, frame, rng, loss=loss):
            params, state = network.divide(params, state)
            model = functools.partial(with_one_key, network)
            grads, (output, new_state) = jax.grad(loss, has_aux=True)(
                params, state, frame, rng, model
            )
            return output, whole(network, grads, new_state)

        def uncut(params, state, frame, rng, loss=loss):
            grads, (output, new_state) = jax.grad(loss, has_aux=True)(
                params, state, frame, rng, apply
            )
            return output, (grads, new_state)

        arguments = (*whole(network, params, state), frames, KEY if train else None)
        names = result_names(cut, *arguments), result_names(uncut, *arguments)
        assert names[0] == names[1]
        assert len(set(names[0])) > len(names[0]) / 2  # They tell results apart.


def assert_close(actual, expected, tolerance=ROUNDING):
    """Fails unless two pytrees agree, relative to the largest number of each leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)
        scale = max(float(jnp.abs(b).max(initial=0)), 1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=str(path))
