"""Where a model is cut by itself: modules of the same cost, and few bytes between them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models as networks
from sideways_jax import split
from sideways_jax.devices.module_groups import count_costs
from sideways_jax.splitting.balance import balanced_cuts
from sideways_jax.splitting.costs import operations


def largest(costs, cuts):
    bounds = (0, *cuts, len(costs))
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("seed", range(20))
def test_all_cuts_tried(seed):
    """Within the slack of the best balance, and of those cuts the one with the fewest bytes."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 9, 9).tolist()
    places = sorted(rng.choice(np.arange(1, 9), 6, replace=False).tolist())
    crossing = rng.integers(1, 9, 6).tolist()
    modules = int(rng.integers(1, 6))
    tried = list(itertools.combinations(places, modules - 1))
    best = min(largest(costs, cuts) for cuts in tried)
    for slack in (1.0, 1.3):
        within = [cuts for cuts in tried if largest(costs, cuts) <= slack * best]
        sent = dict(zip(places, crossing, strict=True))
        fewest = min(sum(sent[c] for c in cuts) for cuts in within)
        found = balanced_cuts(costs, places, crossing, modules, slack)
        assert found in within
        assert sum(sent[c] for c in found) == fewest


@pytest.mark.parametrize("modules", [2, 3, 4])
def test_a_network_of_the_paper(modules):
    """VGG-8 as one model: within 1.25 of the best cut between layers, as the compiler counts."""
    layers = networks.vgg8(10, widths=(8, 12, 16, 16, 16), hidden=(32, 16), dropout_rate=0.0)
    frame = jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.float32)
    variables = layers.init(jax.random.key(0), frame)
    costs = count_costs(layers, *variables, frame, train=False)
    best = min(largest(costs, cuts) for cuts in itertools.combinations(range(1, 8), modules - 1))
    network, params, state = split(layers, frame, modules, variables=variables)
    found = count_costs(network, params, state, frame, train=False)
    assert max(found) / sum(found) <= 1.25 * best / sum(costs)
    assert max(network.costs) / sum(network.costs) <= 1.25 * best / sum(costs)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.matmul, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (
            lambda x, k: jax.lax.conv_general_dilated(
                x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            [(1, 6, 6, 2), (3, 3, 2, 5)],
            2 * 6 * 6 * 5 * 3 * 3 * 2,
        ),
        (lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 7)[0], [(5,)], 35),
        (lambda x: jnp.reshape(x, (6,)), [(2, 3)], 0),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: x, x), [(5,)], 1 + 5),
    ],
)
def test_operations(function, arguments, expected):
    jaxpr = jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in arguments)).jaxpr
    assert sum(map(operations, jaxpr.eqns)) == expected
