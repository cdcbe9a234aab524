"""Groups of modules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax.devices import module_groups
from tests.sideways_jax import networks


def _all_groups(depth, num_devices):
    for cuts in itertools.combinations(range(1, depth), num_devices - 1):
        bounds = (0, *cuts, depth)
        yield tuple(tuple(range(a, b)) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_groups_are_better(seed):
    draw = np.random.default_rng(seed)
    depth = int(draw.integers(1, 9))
    costs = draw.integers(0, 6, depth) if seed % 2 else draw.exponential(size=depth)
    for num_devices in range(1, depth + 1):
        groups = module_groups.balance(costs, num_devices)
        assert groups in set(_all_groups(depth, num_devices))
        largest = min(
            max(costs[list(group)].sum() for group in other)
            for other in _all_groups(depth, num_devices)
        )
        assert max(costs[list(group)].sum() for group in groups) == pytest.approx(largest)


@pytest.mark.parametrize("num_devices", [0, 4])
def test_every_device_needs_a_module(num_devices):
    with pytest.raises(ValueError, match=rf"3 modules .* {num_devices} devices.* 1 to 3"):
        module_groups.balance([1, 1, 1], num_devices)


@pytest.mark.parametrize("sizes", [(3,), (2, 2), (3, 0), (1, 1, 1)])
def test_groups_that_do_not_use_up_the_modules(sizes):
    with pytest.raises(ValueError, match="give 2 sizes of at least 1 that add up to 3"):
        module_groups.from_sizes(sizes, depth=3, num_devices=2)


def test_costs_are_counted_operations():
    """A dense layer: three products of [B, n] and [n, m]-like matrices, forward and backward."""
    from sideways_jax import Network

    network = Network([networks.dense(30), networks.counter(), networks.linear(3)])
    frame = jax.ShapeDtypeStruct((4, 12), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), frame))
    first, nothing, last = module_groups.count_costs(network, *variables, frame)
    assert first == pytest.approx(3 * 2 * 4 * 12 * 30, rel=0.2)
    assert last == pytest.approx(3 * 2 * 4 * 30 * 3, rel=0.2)
    assert nothing < 0.1 * last


def test_costs_of_inference_are_those_of_the_forward_pass():
    from sideways_jax import Module, Network

    def apply(params, state, x, *, train, rng):  # It cannot be differentiated.
        halve = lambda x: x / 2  # noqa: E731
        return jax.lax.while_loop(lambda x: jnp.max(x) > 1, halve, x), state

    network = Network([networks.dense(30), Module(lambda key, x: ((), ()), apply)])
    frame = jax.ShapeDtypeStruct((4, 12), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), frame))
    first, second = module_groups.count_costs(network, *variables, frame, train=False)
    assert first == pytest.approx(2 * 4 * 12 * 30, rel=0.2)
    assert second > 0
