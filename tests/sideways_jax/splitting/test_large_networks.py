"""The large networks of `models`, each as one model that is cut by itself; minutes."""

import jax
import jax.numpy as jnp
import pytest

from sideways_jax import models, split
from sideways_jax.devices.module_groups import balance, count_costs
from tests.sideways_jax.splitting.comparing import assert_computes, assert_same_program

# Narrow, so that they compute quickly; dropout is tested too.
SMALL = {
    "resnet50": {"width": 8},
    "densenet121": {"growth": 4},
    "googlenet": {"divisor": 8},
    "vit_s16": {},
}
NAMES = [name for name in SMALL if name in models.NETWORKS]
pytestmark = [pytest.mark.full, pytest.mark.usefixtures("quick_compile")]


@pytest.mark.parametrize("modules", [4, 8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_program(name, modules):
    """Outputs, running statistics and gradients are computed by the same equations."""
    network = models.make(name, num_classes=4, **SMALL[name])
    frames = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = zeros(network, frames)
    cut, params, state = split(network, frames, modules, variables=variables)
    assert cut.depth == modules
    assert_same_program(cut, params, state, network.apply, frames, batch=4)


@pytest.mark.parametrize("name", NAMES)
def test_computes_the_same(name):
    network = models.make(name, num_classes=4, **SMALL[name])
    frames = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = network.init(jax.random.key(0), frames)
    cut, params, state = split(network, frames, 8, variables=variables)
    assert_computes(cut, params, state, network.apply, batch=4, frames=frames)


@pytest.mark.parametrize("name", NAMES)
def test_balance(name):
    """The largest module is at most 1.25 times that of the best cut between layers."""
    frames = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    layers = models.make(name, num_classes=1000, cut=(1,) * number_of_layers(name))
    variables = zeros(layers, frames)
    costs = count_costs(layers, *variables, frames, train=False)
    for modules in (4, 8, 16):
        groups = balance(costs, min(modules, len(costs)))
        best = max(sum(costs[i] for i in group) for group in groups)
        cut, params, state = split(layers, frames, modules, variables=variables)
        found = count_costs(cut, params, state, frames, train=False)
        print(name, modules, max(found) / best)
        assert max(found) <= 1.25 * best


def number_of_layers(name):
    """From the message for a cut that does not fit."""
    with pytest.raises(ValueError, match=r"there are \d+") as error:
        models.make(name, num_classes=4, cut=(1,))
    return int(str(error.value).split("there are ")[1].split(":")[0])


def zeros(network, frames):
    """Parameters and state, without drawing them."""
    shapes = jax.eval_shape(lambda key: network.init(key, frames), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
