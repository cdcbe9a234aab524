"""docs/splitting.md: its examples, as they stand there."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import split
from tests.sideways_jax.splitting.comparing import assert_close

DOCS = pathlib.Path(__file__).parents[3] / "docs" / "splitting.md"
CODE = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def usual_promotion():
    """Users do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_example():
    names: dict = {}
    exec(CODE[0], names)
    assert names["network"].shortcuts == ((0, 2),)
    assert names["output"].shape == (2, 32, 32, 1)
    assert np.isfinite(names["metrics"]["loss"])


@pytest.mark.full
def test_model_of_another_library():
    """The ResNet-18 of Haiku, with weights that make all layers count."""
    pytest.importorskip("haiku")
    names = {"jax": jax, "jnp": jnp, "split": split}
    exec(CODE[1], names)
    network, model, variables = (names[name] for name in ("network", "model", "variables"))
    assert network.depth == 4
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params, state = variables
    moved = jax.tree.map(lambda x: x + 0.1 * jax.random.uniform(next(keys), x.shape), params)
    variables = moved, state
    frame = jax.random.normal(next(keys), (3, 64, 64, 3))
    cut = network.divide(*variables)
    for train in (False, True):
        expected = jax.jit(model, static_argnums=3)(*variables, frame, train, None)
        output, state = jax.jit(network.apply, static_argnames="train")(*cut, frame, train=train)
        assert_close((output, network.merge(cut[0], state)[1]), expected)
    assert float(jnp.abs(expected[0]).max()) > 1
