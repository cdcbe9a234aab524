"""Layers for the receivers of shortcuts, by themselves and in a network."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import Network, from_linen, models
from sideways_jax.models import Add, Concatenate, GatedAdd
from tests.sideways_jax.models.test_models import normal

MERGES = {"concatenate": Concatenate, "add": Add, "gated add": GatedAdd}


def called(layer, heard):
    given = layer.init(jax.random.key(0), heard)
    return layer.apply(given, heard), given.get("params", {})


def halved(x):
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))


def test_channels_side_by_side():
    main, frame = normal((2, 4, 6, 5)), jnp.full((2, 8, 12, 3), 51, jnp.uint8)
    y, params = called(Concatenate(), (main, normal((2, 4, 6, 2)), frame))
    assert not params
    expected = [main, normal((2, 4, 6, 2)), jnp.full((2, 4, 6, 3), 0.2)]
    np.testing.assert_allclose(y, np.concatenate(expected, axis=-1), rtol=1e-6)


def test_a_sum():
    main, same, larger = normal((2, 4, 4, 5)), normal((2, 4, 4, 5), 1), normal((2, 8, 8, 5), 2)
    y, params = called(Add(), (main, same, larger))
    assert not params
    np.testing.assert_allclose(y, main + same + halved(larger), rtol=1e-5, atol=1e-6)
    y, params = called(Add(), (main, other := normal((2, 4, 4, 2), 3)))
    np.testing.assert_allclose(
        y, main + other @ params["shortcut0"]["kernel"], rtol=1e-5, atol=1e-6
    )


def test_a_gate_for_every_pixel_and_channel():
    main, shortcut = normal((2, 4, 4, 5)), normal((2, 4, 4, 5), 1)
    y, params = called(GatedAdd(), (main, shortcut))
    both = np.concatenate([main, shortcut], axis=-1)
    gate = nn.sigmoid(both @ params["gate0"]["kernel"])
    np.testing.assert_allclose(y, main + gate * shortcut, rtol=1e-5, atol=1e-6)
    y, _ = called(GatedAdd(bias=-30.0), (main, shortcut))  # Nothing gets through.
    np.testing.assert_allclose(y, main, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("merge", MERGES.values())
def test_without_shortcuts_nothing_changes(merge):
    y, params = called(merge(), main := normal((2, 4, 4, 5)))
    np.testing.assert_array_equal(y, main)
    assert not params


def test_tokens_merge_too():
    main, shortcut = normal((2, 5, 6)), normal((2, 5, 6), 1)
    np.testing.assert_allclose(called(Add(), (main, shortcut))[0], main + shortcut, rtol=1e-6)


@pytest.mark.parametrize("merge", MERGES.values())
def test_of_the_type_of_the_main_path(merge):
    heard = jnp.ones((2, 4, 4, 5), jnp.bfloat16), jnp.ones((2, 8, 8, 3), jnp.uint8)
    y, _ = jax.eval_shape(lambda: called(merge(jnp.bfloat16), heard))
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("main", "shortcut"),
    [
        ((2, 4, 4, 5), (2, 7, 8, 5)),  # 7 is no multiple of 4
        ((2, 4, 4, 5), (2, 2, 2, 5)),  # fewer pixels
        ((2, 5, 6), (2, 7, 6)),  # other tokens
        ((2, 4, 4, 5), (2, 5)),  # no pixels
    ],
)
@pytest.mark.parametrize("merge", MERGES.values())
def test_shapes_that_do_not_merge(merge, main, shortcut):
    """The message has both shapes, and what can be done."""
    with pytest.raises(ValueError, match="have to be multiples") as error:
        called(merge(), (jnp.zeros(main), jnp.zeros(shortcut)))
    assert f"{list(shortcut)} does not merge with the main path {list(main)}" in str(error.value)
    assert "another source or receiver" in str(error.value)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("merge", MERGES.values())
def test_in_a_network(merge):
    """The frame, and a module, to a module above; trained shapes, and an error with its place."""

    def network(stride):
        convs = [from_linen(nn.Conv(4, (3, 3), one)) for one in (stride, 1)]
        last = nn.Sequential([merge(), lambda x: x.mean((1, 2)), nn.Dense(2)])
        pixels = from_linen(lambda train: nn.Sequential([lambda x: x.astype("f4") / 255]))
        return Network([pixels, *convs, from_linen(last)], [(-1, 3), (0, 3)])

    frame = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
    params, state = network(2).init(jax.random.key(0), frame)
    assert network(2).apply(params, state, frame)[0].shape == (2, 2)
    with pytest.raises(ValueError, match=r"module 3 .* fails on .*the frame, .* does not merge"):
        network(3).init(jax.random.key(0), frame)


def test_an_auto_encoder_that_hears_the_frame():
    network = models.autoencoder(widths=(4, 4, 4), shortcuts=[(-1, 1), (-1, 2)])
    frame = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    params, state = jax.eval_shape(network.init, jax.random.key(0), frame)
    assert params[1]["layers_1"]["conv"]["kernel"].shape == (3, 3, 4 + 3, 4)
    assert network.activation_shapes(params, state, frame)[-1].shape == (2, 8, 8, 3)


def test_what_the_docs_say():
    text = (Path(__file__).parents[3] / "docs" / "networks.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(code, found)
    frame = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, _ = jax.eval_shape(found["network"].init, jax.random.key(0), frame)
    # Module 2 hears module 1, and module 0 through a shortcut.
    assert params[2]["layers_1"]["kernel"].shape == (3, 3, 16 + 16, 16)
