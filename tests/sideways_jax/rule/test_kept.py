"""What a forward pass keeps for a backward pass that comes later."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models, step
from sideways_jax.rule.fifo import passes_of
from sideways_jax.rule.kept import passes
from sideways_jax.rule.rule import empty_fifos


def _of_layer(params, state, x, context):
    """Residuals of all kinds: of parameters alone, of the context, of the input, and constants."""
    y = jnp.tanh(x @ (params["w"] * jnp.exp(params["w"])).T) * context["scale"] + params["b"][None]
    return jax.nn.relu(y), state + 1


def _arguments():
    draw = np.random.default_rng(0)
    params = {"w": draw.normal(size=(4, 3)), "b": draw.normal(size=4)}
    return params, np.float64(0), draw.normal(size=(2, 3)), {"scale": draw.normal(size=(2, 4))}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("recompute", [True, False])
def test_passes_apart_are_the_vjp(recompute):
    params, state, x, context = _arguments()
    one = passes(_of_layer, jax.eval_shape(lambda *a: a, *_arguments()), recompute=recompute)
    result, aux, kept = jax.jit(one.forward)(params, state, x, context)
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(lambda s: s.shape, one.kept)
    expected, vjp, _ = jax.vjp(
        lambda p, x: _of_layer(p, state, x, context), params, x, has_aux=True
    )
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    assert aux == 1
    cotangent = np.random.default_rng(1).normal(size=(2, 4))
    found = jax.jit(one.backward)(params, kept, context, cotangent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, vjp(cotangent))


def test_residuals_are_neither_parameters_nor_what_is_made_of_them_nor_constants():
    one = passes(_of_layer, jax.eval_shape(lambda *a: a, *_arguments()), recompute=False)
    assert all(leaf.shape[0] == 2 for leaf in one.kept)  # A batch: of the input.
    assert (4, 3) not in [leaf.shape for leaf in one.kept]
    assert sum(leaf.shape == (2, 4) for leaf in one.kept) <= 3  # tanh, its slope, relu's sign.


def test_residuals_of_convolutions_take_little_more_than_inputs():
    """A transposed kernel, as large as the parameters, was kept with every frame."""
    network = models.simple_cnn(10)
    frame = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
    inputs = network.inputs(frame, network.activation_shapes(params, state, frame))

    def kept_bytes(recompute):
        found = [
            passes_of(*one, None, train=True, recompute=recompute).kept
            for one in zip(network.modules, params, state, inputs, strict=True)
        ]
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))

    assert kept_bytes(False) < 1.5 * kept_bytes(True)


def test_a_scan_does_not_copy_what_modules_keep():
    """Once per step, XLA copied whole buffers: their oldest entry was read before a write."""
    network = models.simple_cnn(10, widths=(4, 8, 8, 8, 8))
    frames = jnp.zeros((12, 1, 16, 16, 3))
    variables = network.init(jax.random.key(0), frames[0])

    def grads(params, state, frames):
        return step.episode_gradients(
            network, lambda y, _: y.sum(), params, state, frames, jnp.zeros((12, 1)),
            rule="pipelined_backprop",
        ).grads  # fmt: skip

    program = jax.jit(grads).lower(*variables, frames).compile().as_text()
    buffers = [
        ",".join(map(str, x.shape))
        for fifo in jax.eval_shape(lambda: empty_fifos(network, *variables, frames[0]))
        for x in jax.tree.leaves(fifo and fifo.kept.entries)
    ]
    assert len(buffers) == network.depth - 1
    assert all(f"f32[{shape}]" in program for shape in buffers)
    assert not re.findall(rf"= f32\[(?:{'|'.join(buffers)})\]\S* copy\(", program)
