"""What is wrong with an episode is said before anything is computed."""

import re

import jax
import jax.numpy as jnp
import pytest

from sideways_jax import Network, step
from tests.sideways_jax import networks
from tests.sideways_jax.networks import squared_error

EXECUTIONS = ("scan", "time_parallel")


def _episode(network, clip, **options):
    params, state = network.init(jax.random.key(0), clip[0][0])
    return step.episode_gradients(network, squared_error, params, state, *clip, **options)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("depth", [2, 4])
def test_an_episode_shorter_than_an_update_cycle(depth, execution):
    too_short = 2 * depth - 2
    with pytest.raises(ValueError, match=rf"\b{too_short}\b.*\b{2 * depth - 1}\b") as error:
        _episode(
            networks.dense_network(depth), networks.random_clip(too_short), execution=execution
        )
    assert "2D-1" in str(error.value).replace(" ", "")


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("rule", ["sideways", "backprop"])
def test_frames_and_targets_of_different_length(rule, execution):
    frames, targets = networks.random_clip(8)
    with pytest.raises(ValueError, match=r"(?s)\b8\b.*\b6\b"):
        _episode(networks.dense_network(2), (frames, targets[:6]), rule=rule, execution=execution)


@pytest.mark.parametrize(
    ("options", "valid"),
    [
        ({"rule": "sidways"}, ("sidways", "sideways", "backprop")),
        ({"execution": "paralel"}, ("paralel", "scan", "time_parallel")),
        ({"target": "now"}, ("now", "stream", "origin")),
    ],
)
def test_unknown_names_are_answered_with_the_valid_ones(options, valid):
    with pytest.raises(ValueError, match=next(iter(options.values()))) as error:
        _episode(networks.dense_network(2), networks.random_clip(4), **options)
    for name in valid:
        assert repr(name) in str(error.value)


def _of_fixed_width(width):
    """A module that expects `width` numbers whatever it is initialised with."""
    layer = networks.dense(4)
    return layer._replace(init=lambda key, x: layer.init(key, jnp.zeros((3, width), x.dtype)))


def _misfit():
    # Module 1 gives 6 numbers, module 2 wants 5.
    return Network([networks.dense(4), networks.dense(6), _of_fixed_width(5), networks.linear(3)])


def test_a_module_that_does_not_fit_is_named_by_init():
    with pytest.raises(ValueError, match=r"[Mm]odule 2\b") as error:
        _misfit().init(jax.random.key(0), networks.random_clip(1)[0][0])
    assert re.search(r"\b3, 6\b", str(error.value))  # the shape that arrived


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("rule", ["sideways", "backprop"])
def test_a_module_that_does_not_fit_is_named_by_the_episode(rule, execution):
    network = _misfit()
    x = networks.random_clip(1)[0][0]
    params, state = zip(
        *(
            module.init(jax.random.key(0), jnp.zeros((3, width), x.dtype))
            for module, width in zip(network.modules, (5, 4, 5, 4), strict=True)
        ),
        strict=True,
    )
    with pytest.raises(ValueError, match=r"[Mm]odule 2\b") as error:
        step.episode_gradients(
            network, squared_error, params, state, *networks.random_clip(8),
            rule=rule, execution=execution,
        )  # fmt: skip
    assert re.search(r"\b3, 6\b", str(error.value))
