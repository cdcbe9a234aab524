"""The two networks: their shapes, parameters, cuts, statistics and dropout."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models
from sideways_jax.models import simple_cnn, vgg8
from sideways_jax.models.layers import fan_in_normal, max_pool
from sideways_jax.models.vgg import minimum_size

TINY_VGG = {"widths": (4, 6, 8, 8, 8), "hidden": (32, 16)}


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def frames_like(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def shapes(network, frame):
    """Shapes of parameters, state and activations, without computing anything."""
    params, state = jax.eval_shape(lambda key: network.init(key, frame), jax.random.key(0))
    return params, state, network.activation_shapes(params, state, frame)


def variables(network, frame):
    """Some parameters and state, without the time that compiling random generators takes."""
    params, state, _ = shapes(network, jax.ShapeDtypeStruct(frame.shape, frame.dtype))
    params = jax.tree.map(lambda leaf: 0.3 * normal(leaf.shape), params)
    return params, jax.tree.map(lambda leaf: 1 + jnp.square(normal(leaf.shape, 1)), state)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_simple_cnn_parameters_and_activations():
    params, state, activations = shapes(simple_cnn(10), frames_like(2, 112, 112, 3))
    assert [count(p) for p in params] == [
        3 * 3 * 3 * 32,
        3 * 3 * 32 * 64,
        3 * 3 * 64 * 64,
        3 * 3 * 64 * 128,
        3 * 3 * 128 * 256,
        256 * 10 + 10,  # The only bias.
    ]
    assert count(params) == 427_370
    assert count(state) == 0
    assert [a.shape for a in activations] == [
        (2, 56, 56, 32),
        (2, 56, 56, 64),
        (2, 28, 28, 64),
        (2, 28, 28, 128),
        (2, 14, 14, 256),
        (2, 10),
    ]


def test_vgg8_parameters_and_activations():
    params, state, activations = shapes(vgg8(101), frames_like(2, 112, 112, 3))
    assert [count(p) for p in params] == [
        7 * 7 * 3 * 96 + 2 * 96,  # The kernel; the scale and shift of batch normalisation.
        5 * 5 * 96 * 256 + 2 * 256,
        3 * 3 * 256 * 512 + 2 * 512,
        3 * 3 * 512 * 512 + 2 * 512,
        3 * 3 * 512 * 512 + 2 * 512,
        3 * 3 * 512 * 4096,
        4096 * 2048,
        2048 * 101 + 101,  # The only bias.
    ]
    assert count(params) == 34_000_453
    assert [count(s) for s in state] == [192, 512, 1024, 1024, 1024, 0, 0, 0]
    assert [a.shape for a in activations] == [
        (2, 28, 28, 96),
        (2, 7, 7, 256),
        (2, 7, 7, 512),
        (2, 7, 7, 512),
        (2, 3, 3, 512),
        (2, 4096),
        (2, 2048),
        (2, 101),
    ]


@pytest.mark.usefixtures("quick_compile")
def test_simple_cnn_is_what_the_paper_says():
    """Written out once more, with lax alone."""
    network = simple_cnn(3, widths=(4, 5, 6, 7, 8))
    x = normal((2, 9, 11, 1))
    params, state = variables(network, x)
    y, _ = network.apply(params, state, x)
    for module, stride in zip(params[:-1], (2, 1, 2, 1, 2), strict=True):
        kernel, numbers = module["conv"]["kernel"], ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )
        x = jnp.maximum(x, 0)
    linear = params[-1]["linear"]
    expected = jnp.einsum("bhwc,cn->bn", x, linear["kernel"]) / (x.shape[1] * x.shape[2])
    np.testing.assert_allclose(y, expected + linear["bias"][None], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("quick_compile")
def test_vgg8_block_normalises_between_convolution_and_relu():
    network = vgg8(3, **TINY_VGG)
    frame = normal((4, 32, 32, 3))
    params, state = variables(network, frame)
    scale, bias = params[0]["norm"]["scale"], params[0]["norm"]["bias"]
    y, new_state = network.modules[0].apply(params[0], state[0], frame, train=True, rng=None)

    x = jax.lax.conv_general_dilated(
        frame,
        params[0]["conv"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x, mean, variance, scale, bias = map(np.asarray, (x, mean, variance, scale, bias))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    expected = nn.max_pool(nn.relu(expected), (2, 2), (2, 2))
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    old, new = (s["batch_stats"]["norm"] for s in (state[0], new_state))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * variance, rtol=1e-4)
    # Evaluation uses them and leaves them alone.
    _, same_state = network.modules[0].apply(params[0], new_state, frame, train=False, rng=None)
    jax.tree.map(np.testing.assert_array_equal, same_state, new_state)


@pytest.mark.parametrize(
    ("make", "sizes"), [(simple_cnn, (2, 2, 2)), (simple_cnn, (1, 5)), (vgg8, (3, 2, 2, 1))]
)
def test_cut_moves_layers_and_nothing_else(make, sizes):
    options = TINY_VGG if make is vgg8 else {"widths": (4, 5, 6, 7, 8)}
    if make is vgg8:
        options = {**options, "dropout_rate": 0.0}  # Its keys follow the cut.
    layers, network = make(3, **options), make(3, **options, cut=sizes)
    assert network.depth == len(sizes)
    frame = normal((2, 32, 32, 3))
    params, state = variables(layers, frame)

    def nest(flat):
        flat = iter(flat)
        groups = [tuple(next(flat) for _ in range(size)) for size in sizes]
        return tuple(group if len(group) > 1 else group[0] for group in groups)

    assert jax.tree.structure(shapes(network, frame)[:2]) == jax.tree.structure(
        (nest(params), nest(state))
    )
    for train in (False, True):
        y, new_state = layers.apply(params, state, frame, train=train)
        nested_y, nested_state = network.apply(nest(params), nest(state), frame, train=train)
        np.testing.assert_array_equal(nested_y, y)
        jax.tree.map(np.testing.assert_array_equal, nested_state, nest(new_state))


@pytest.mark.usefixtures("quick_compile")
def test_dropout_in_both_hidden_layers():
    network = vgg8(3, widths=(4, 6, 8, 8, 8), hidden=(2000, 1000), dropout_rate=0.75)
    frame = normal((2, 32, 32, 3))
    params, state = variables(network, frame)
    for i in (5, 6):
        x = jnp.abs(normal((4, 8 if i == 5 else 2000)))
        # Kernels of ones, so that no unit is zero unless it is dropped.
        ones = jax.tree.map(jnp.ones_like, params[i])

        def apply(x=x, i=i, ones=ones, **keywords):
            return network.modules[i].apply(ones, state[i], x, **keywords)[0]

        evaluated = apply(train=False, rng=None)
        assert jnp.all(evaluated > 0)
        y = apply(train=True, rng=jax.random.key(1))
        kept = y != 0
        assert 0.2 < jnp.mean(kept.astype(jnp.float32)) < 0.3
        np.testing.assert_allclose(y[kept], 4 * evaluated[kept], rtol=1e-5)
        assert not jnp.array_equal(y, apply(train=True, rng=jax.random.key(2)))
        with pytest.raises(Exception, match="dropout"):
            apply(train=True, rng=None)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("make", [simple_cnn, vgg8])
def test_pixel_values_are_scaled(make):
    network = make(3, widths=(4, 6, 8, 8, 8))
    pixels = np.random.default_rng(0).integers(256, size=(2, 27, 27, 3), dtype=np.uint8)
    params, state = variables(network, pixels)
    y, _ = network.apply(params, state, jnp.asarray(pixels))
    expected, _ = network.apply(params, state, jnp.asarray(pixels / np.float32(255)))
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.parametrize("make", [simple_cnn, vgg8])
def test_bfloat16_activations_and_float32_parameters_and_logits(make):
    network = make(3, widths=(4, 6, 8, 8, 8), dtype=jnp.bfloat16)
    for pixels in (jnp.uint8, jnp.float32):
        params, _, activations = shapes(network, frames_like(2, 32, 32, 3, dtype=pixels))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        *inner, logits = (a.dtype for a in activations)
        assert set(inner) == {jnp.dtype("bfloat16")}
        assert logits == jnp.float32


@pytest.mark.parametrize("make", [simple_cnn, vgg8])
@pytest.mark.usefixtures("x64")
def test_float64(make):
    network = make(3, widths=(4, 6, 8, 8, 8), param_dtype=jnp.float64)
    tree = shapes(network, frames_like(2, 32, 32, 3, dtype=jnp.uint8))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("make", [simple_cnn, vgg8])
def test_gradients_are_fast_in_loops(make):
    """All convolutions in the layout that XLA's CPU backend is fast in, and no select-and-scatter.

    With gradients of all frames of an episode at once, as the time-parallel execution takes them.
    """
    network = make(3, widths=(4, 6, 8, 8, 8))
    frames = jnp.zeros((3, 2, 32, 32, 3), jnp.uint8)
    params, state = variables(network, frames[0])

    def loss(params):
        def output(frame):
            return network.apply(params, state, frame, train=True, rng=jax.random.key(0))[0]

        return jnp.sum(jax.vmap(output)(frames))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
    layouts = re.findall(r"ConvDimensionNumbers\([^\]]*?\)\)", jaxpr.replace("\n", ""))
    assert len(layouts) == 5 + 5 + 4  # Nothing is sent to the frame.
    assert set(layouts) == {
        "ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))"
    }
    assert set(re.findall(r"_group_count=(\d+)", jaxpr)) == {"1"}
    assert "select_and" not in jaxpr


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)])
def test_max_pool_equals_that_of_flax(size):
    x = normal((2, *size, 3))

    def both(pool):
        y, vjp = jax.vjp(pool, x)
        return y, vjp(jnp.cos(y))[0]

    expected = both(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    jax.tree.map(np.testing.assert_array_equal, both(max_pool), expected)


def test_gradient_of_max_pool_is_shared_by_equal_pixels():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), 0.25))


@pytest.mark.usefixtures("quick_compile")
def test_he_initialisation_keeps_the_scale():
    """The second moment of the activations stays that of the frame, through five ReLUs."""
    network = simple_cnn(10)
    x = normal((2, 64, 64, 3))
    params, state = network.init(jax.random.key(0), x)
    for i in range(5):
        x, _ = network.modules[i].apply(params[i], state[i], x, train=False, rng=None)
    assert 0.3 < jnp.mean(jnp.square(x)) < 2  # 1/32 of it with flax's default.


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_initialisers_equal_those_of_flax(scale):
    reference = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    for shape in ((3, 3, 5, 4), (7, 3)):
        kernel = fan_in_normal(scale)(jax.random.key(1), shape)
        np.testing.assert_allclose(kernel, reference(jax.random.key(1), shape), rtol=1e-6)


def test_vgg8_says_which_frames_are_too_small():
    assert minimum_size() == 27
    network = vgg8(3, **TINY_VGG)
    assert shapes(network, frames_like(2, 27, 27, 3))[2][4].shape == (2, 1, 1, 8)
    for size in ((26, 40), (40, 26)):
        with pytest.raises(
            ValueError, match=rf"{size[0]}x{size[1]} pixels are too small.*27x27.*larger frames"
        ):
            network.init(jax.random.key(0), frames_like(2, *size, 3))


@pytest.mark.parametrize("make", [simple_cnn, vgg8])
def test_frames_of_another_rank(make):
    with pytest.raises(ValueError, match=r"\[B, H, W, C\], got \[32, 32, 3\]"):
        make(3).init(jax.random.key(0), frames_like(32, 32, 3))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"widths must be 5 numbers; got 2, \(8, 8\)"):
        vgg8(3, widths=(8, 8))
    with pytest.raises(ValueError, match=r"dropout_rate=1 .* below 1"):
        vgg8(3, dropout_rate=1)
    with pytest.raises(ValueError, match="there are 6"):
        simple_cnn(3, cut=(2, 2))


def test_make():
    assert models.make("vgg8", 3, dropout_rate=0.5).depth == 8
    with pytest.raises(ValueError, match="'vgg'; did you mean 'vgg8'"):
        models.make("vgg", 3)
    with pytest.raises(ValueError, match="argument of vgg8 'droput_rate'; did you mean 'dropout_"):
        models.make("vgg8", 3, droput_rate=0.5)
