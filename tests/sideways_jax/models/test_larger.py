"""ResNets, DenseNet-121, GoogLeNet and ViT-S/16: their sizes, types, and what they are made of."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models
from sideways_jax.models import blocks, resnet, vit
from tests.sideways_jax.models.test_models import count, frames_like, normal, shapes, variables

TINY = {
    "resnet18": {"width": 4},
    "resnet50": {"width": 2},
    "densenet121": {"growth": 2},
    "googlenet": {"divisor": 16},
    "vit_s16": {"width": 12, "heads": 3, "blocks": 2, "cut": (1, 2, 1)},
}
OFTEN = ["resnet18", "vit_s16"]
SELDOM = [pytest.param(name, marks=pytest.mark.full) for name in TINY if name not in OFTEN]
SHARED = blocks.Shared()
SHAPES = {  # of 32x32 pixels
    "resnet18": [(8, 8, 4), (4, 4, 8), (2, 2, 16), (1, 1, 32)],
    "googlenet": [(8, 8, 4), (4, 4, 12), (2, 2, 30), (2, 2, 32), (1, 1, 52)],
}


def tiny(name, **options):
    return models.make(name, 3, **(TINY[name] | options))


@pytest.mark.parametrize(
    ("name", "parameters", "depth"),
    [
        ("resnet18", 11_689_512, 5),
        ("vit_s16", 22_050_664, 6),
        pytest.param("googlenet", 6_624_904, 6, marks=pytest.mark.full),
        pytest.param("resnet50", 25_557_032, 8, marks=pytest.mark.full),
        pytest.param("densenet121", 7_978_856, 8, marks=pytest.mark.full),
    ],
)
def test_as_many_parameters_as_published(name, parameters, depth):
    network = models.make(name, 1000)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), frames_like(1, 224, 224, 3))
    assert count(params) == parameters
    assert network.depth == depth


@pytest.mark.parametrize("name", OFTEN + SELDOM)
def test_frames_become_logits(name):
    """Of pixels and of floats, with activations in bfloat16 and logits in float32."""
    network = tiny(name, dtype=jnp.bfloat16)
    params, state, activations = shapes(network, frames_like(2, 32, 32, 3, dtype=jnp.uint8))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}
    *inner, logits = activations
    assert {one.dtype for one in inner} == {jnp.dtype("bfloat16")}
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
    if name in SHAPES:
        assert [one.shape[1:] for one in inner] == SHAPES[name]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["resnet18", "vit_s16"])
def test_float64(name):
    network = tiny(name, param_dtype=jnp.float64)
    tree = shapes(network, frames_like(2, 32, 32, 3, dtype=jnp.uint8))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float64")}


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", ["resnet18", "vit_s16"])
def test_pixels_are_standardised(name):
    network = tiny(name)
    pixels = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    params, state = variables(network, pixels)
    colours = blocks.CENTRED if name == "vit_s16" else blocks.IMAGENET
    floats = (pixels / np.float32(255) - np.float32(colours.mean)) / np.float32(colours.std)

    @jax.jit
    def first(frames):
        return network.modules[0].apply(params[0], state[0], frames, train=False, rng=None)[0]

    given, expected = first(jnp.asarray(pixels)), first(jnp.asarray(floats))
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    other = first(jnp.asarray(pixels / np.float32(255)))
    assert np.abs(other - expected).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["resnet18", *SELDOM])
def test_gradients_are_fast_in_loops(name):
    """As tests of `test_models`: one layout of convolutions, and no select-and-scatter."""
    network = tiny(name)
    frame = frames_like(2, 32, 32, 3, dtype=jnp.uint8)
    params, state, _ = shapes(network, frame)

    def loss(params, state, frames):
        def output(frame):
            return network.apply(params, state, frame, train=True, rng=jax.random.key(0))[0]

        return jnp.sum(jax.vmap(output)(frames))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params, state, frames_like(3, *frame.shape)))
    layouts = re.findall(r"ConvDimensionNumbers\([^\]]*?\)\)", jaxpr.replace("\n", ""))
    assert set(layouts) == {
        "ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))"
    }
    assert "select_and" not in jaxpr
    assert "reduce_window" not in jaxpr


@pytest.mark.parametrize(
    ("window", "stride", "pad"), [(3, 2, 1), (3, 1, 1), (3, 2, None), (2, 2, None)]
)
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3), (1, 1)])
def test_max_pool_is_that_of_pytorch(window, stride, pad, size):
    """Against windows in a loop; `ceil_mode` where there is no padding."""
    x = np.asarray(normal((2, *size, 3)))
    low = pad or 0
    expected = np.full((2, *(_windows(n, window, stride, pad) for n in size), 3), -np.inf)
    for row, column in np.ndindex(expected.shape[1:3]):
        rows = slice(max(row * stride - low, 0), row * stride - low + window)
        columns = slice(max(column * stride - low, 0), column * stride - low + window)
        expected[:, row, column] = x[:, rows, columns].max((1, 2))
    np.testing.assert_array_equal(blocks.max_pool(jnp.asarray(x), window, stride, pad), expected)


def _windows(size, window, stride, pad):
    if pad is not None:
        return (size + 2 * pad - window) // stride + 1
    starts = range(0, size, stride)
    return len([start for start in starts if not start or start - stride + window < size])


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(("bottleneck", "stride"), [(True, 2), (False, 1)])
def test_a_residual_block_written_once_more(bottleneck, stride):
    block = resnet.Block(4, stride, bottleneck, SHARED)
    x = normal((2, 6, 6, 4))
    shapes = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, train=False), x)
    given = jax.tree.map(lambda leaf: 1 + jnp.square(normal(leaf.shape, 1)), shapes)
    y = block.apply(given, x, train=False)

    def conv_norm(x, name, stride):
        kernel = given["params"][name]["conv"]["kernel"]
        pad = (kernel.shape[0] // 2,) * 2
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        norm, seen = given["params"][name]["norm"], given["batch_stats"][name]["norm"]
        x = (x - seen["mean"][None, None, None]) / np.sqrt(seen["var"] + 1e-5)[None, None, None]
        return x * norm["scale"][None, None, None] + norm["bias"][None, None, None]

    if bottleneck:
        inner = nn.relu(conv_norm(x, "layer0", 1))
        inner = conv_norm(nn.relu(conv_norm(inner, "layer1", stride)), "layer2", 1)
        expected = nn.relu(inner + conv_norm(x, "shortcut", stride))
    else:
        assert "shortcut" not in given["params"]
        inner = conv_norm(nn.relu(conv_norm(x, "layer0", stride)), "layer1", 1)
        expected = nn.relu(inner + x)
    np.testing.assert_allclose(y, expected, rtol=1e-4)


def test_attention_is_that_of_flax():
    query, key, value = (normal((2, 5, 3, 4), seed) for seed in range(3))
    expected = nn.dot_product_attention(query, key, value)
    np.testing.assert_allclose(
        vit.attention(query, key, value, jnp.float32), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("densenet121", 28, "28x28 pixels are too small: .* fewer than 29x29"),
        ("vit_s16", 40, "40x40 pixels do not divide into patches of 16x16: crop or resize them to"),
    ],
)
def test_frames_that_do_not_fit(name, size, said):
    with pytest.raises(ValueError, match=said):
        shapes(tiny(name), frames_like(2, size, size, 3))


def test_colours():
    with pytest.raises(ValueError, match="frames of 1 colours: there are means of 3"):
        shapes(tiny("resnet18"), frames_like(2, 32, 32, 1, dtype=jnp.uint8))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("googlenet", {"divisor": 17}, "divisor=17 of 16 channels must be from 1 to 16"),
        ("vit_s16", {"width": 10, "heads": 4}, "width=10 channels do not divide into heads=4"),
        ("resnet50", {"cut": (18, 1)}, "takes 19 layers, but there are 18"),
    ],
)
def test_arguments_that_do_not_fit(name, options, said):
    with pytest.raises(ValueError, match=said):
        models.make(name, 3, **options)
