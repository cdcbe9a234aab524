"""Pipelined backprop on streams whose backward passes use the weights of their forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import Module, Network, make_mesh, step
from tests.sideways_jax import networks, reference
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.sharding import assert_close

FRAMES, RATE = 16, 0.3


def _both():
    def apply(params, state, x, *, train, rng):
        return jnp.concatenate(x, axis=-1), state

    return Module(lambda key, x: ((), ()), apply)


@functools.cache
def _network():
    """Four modules, one with dropout, and a shortcut whose cotangents are held back."""
    merging = networks.chain(_both(), networks.dense(5))
    layers = [networks.dense(6), networks.dropout(0.5), merging, networks.linear(3)]
    return Network(layers, [(0, 2)])


def _stream():
    frames, _ = networks.random_clip(FRAMES)
    targets = np.random.default_rng(3).normal(size=(FRAMES, frames.shape[1], 3))
    reset = np.zeros((FRAMES, frames.shape[1]), bool)
    reset[5, 0] = reset[9, 1] = reset[11, 1] = True
    return frames, targets, reset


def _learn(execution, state=None):
    frames, targets, reset = _stream()
    init, train_step = step.make_train_step(
        _network(), squared_error, optax.sgd(RATE), rule="pipelined_backprop", update_every=1,
        execution=execution,
    )  # fmt: skip
    start = init(jax.random.key(0), jnp.asarray(frames[0]))
    return start, train_step(start if state is None else state, frames, targets, reset)[0]


def _expected(start, *, stashes_weights):
    return reference.pipelined_stream(
        _network(), squared_error, start.params, start.state, *_stream(), target="stream",
        update_every=1, optimizer=reference.Optimizer(rate=RATE), rng=start.rng,
        stashes_weights=stashes_weights,
    )  # fmt: skip


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("recompute", [True, False])
def test_stashing_is_the_literal_loop(recompute):
    start, learnt = _learn(step.Scan(recompute, stash_weights=True))
    expected = _expected(start, stashes_weights=True)
    assert_close(learnt.params, expected.params, 1e-10)
    others = _expected(start, stashes_weights=False)
    different = jax.tree.map(lambda a, b: np.abs(a - b).max(), others.params, expected.params)
    assert max(jax.tree.leaves(different[0])) > 1e-3  # The weights have moved in between.


@pytest.mark.usefixtures("quick_compile")
def test_a_state_without_stashed_weights_is_refused():
    start, _ = _learn("scan")
    with pytest.raises(ValueError, match=r"made with stash_weights=False.*stash_weights=True"):
        _learn(step.Scan(stash_weights=True), start)


@pytest.mark.usefixtures("quick_compile")
def test_a_mesh_refuses_stashed_weights():
    network = Network([networks.dense(6), networks.linear(3)])
    frame = jnp.asarray(networks.random_clip(1)[0][0])
    init, _ = step.make_train_step(
        network, squared_error, optax.sgd(RATE), rule="pipelined_backprop", update_every=1,
        execution=step.Scan(stash_weights=True),
    )  # fmt: skip
    _, from_modules = step.per_module(network, optax.sgd(RATE), make_mesh(2), frame)
    with pytest.raises(ValueError, match="past forward passes, which a mesh does not"):
        from_modules(init(jax.random.key(0), frame))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "pipelined_backprop"}, "stash_weights=True is for streams.*set update_every"),
        ({"rule": "sideways", "update_every": 1}, "stash_weights=True.* only rule='pipelined_back"),
        ({"rule": "backprop", "update_every": 1}, "stash_weights=True.* only rule='pipelined_back"),
    ],
)
def test_stashing_where_there_is_nothing_to_stash(options, message):
    with pytest.raises(ValueError, match=message):
        step.make_train_step(
            _network(), squared_error, optax.sgd(RATE), execution=step.Scan(stash_weights=True),
            **options,
        )  # fmt: skip
