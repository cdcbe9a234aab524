"""The auto-encoder: its shapes, its mirror image, what it does with pixels, and how it learns."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from sideways_jax import step, stream
from sideways_jax.models import autoencoder
from sideways_jax.models.autoencoder import TransposedConv, squared_error

SMALL = {"widths": (4, 6, 6, 8, 8)}


def _frames(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def test_shapes_of_the_paper():
    network = autoencoder()
    frame = jax.ShapeDtypeStruct((8, 240, 240, 3), jnp.uint8)
    params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
    shapes = [one.shape[1:] for one in network.activation_shapes(params, state, frame)]
    assert shapes == [
        (120, 120, 32), (120, 120, 64), (60, 60, 64), (60, 60, 128), (30, 30, 256), (240, 240, 3),
    ]  # fmt: skip
    kernels = [x.shape for x in jax.tree.leaves(params[5]) if x.ndim == 4]
    assert [k[-1] for k in kernels] == [128, 64, 64, 32, 3]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_transposed_convolution_is_that_of_lax(stride):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), jnp.float32)
    layer = TransposedConv(7, stride, True, nn.initializers.normal(1.0), None, jnp.float32)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    np.testing.assert_array_equal(
        y, lax.conv_transpose(x, kernel, (stride, stride), "SAME", dimension_numbers=None)
    )


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_the_error_is_in_units_of_white(pixel_range):
    frame = jnp.full((1, 2, 2, 3), 255, jnp.uint8)
    black = jnp.full((1, 2, 2, 3), pixel_range[0])
    assert squared_error(pixel_range)(black, frame) == pytest.approx(1)
    assert squared_error(pixel_range)(black + 0.5, black) == pytest.approx(
        (0.5 / (pixel_range[1] - pixel_range[0])) ** 2
    )


@pytest.mark.usefixtures("quick_compile")
def test_it_learns_online():
    network = autoencoder(**SMALL, normalise=True)
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1)
    frames = np.repeat(np.stack([image, image[::-1]])[None], 80, axis=0)
    init, train_step = step.make_train_step(
        network, squared_error(), optax.sgd(0.3, momentum=0.9), update_every=1
    )
    train_state = init(jax.random.key(0), frames[0])
    train_step = jax.jit(train_step)
    losses = []
    for _ in range(2):
        train_state, metrics = train_step(train_state, frames, frames)
        losses.append(float(metrics["loss"]))
    assert losses[1] < 0.75 * losses[0]


def test_pipelined_outputs_are_the_synchronous_ones():
    network = autoencoder(**SMALL)
    frames = _frames(8, 2, 16, 16)
    params, state = network.init(jax.random.key(0), frames[0])
    model = stream.PipelinedModel(network, params, state)
    outputs = [model.push(frame) for frame in frames]
    apply = jax.jit(lambda frame: network.apply(params, state, frame)[0])
    for frame, output in zip(frames, outputs[5:], strict=False):
        np.testing.assert_array_equal(output, apply(frame))


def test_mistakes():
    with pytest.raises(ValueError, match="unknown output_activation 'sigmod'; did you mean"):
        autoencoder(output_activation="sigmod")
    with pytest.raises(ValueError, match="the smaller one first"):
        squared_error((1, 1))
    with pytest.raises(ValueError, match="cannot be compared"):
        squared_error()(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"12x16 pixels .* multiples of 8"):
        autoencoder(**SMALL).init(jax.random.key(0), _frames(1, 12, 16))
    with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
        autoencoder(**SMALL).init(jax.random.key(0), _frames(16, 16))
