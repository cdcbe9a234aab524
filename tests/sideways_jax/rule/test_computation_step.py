"""One step at a time: who works on what, and that nothing leaks out of an empty pipeline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import step
from tests.sideways_jax import networks, reference
from tests.sideways_jax.comparison import assert_same, largest_difference
from tests.sideways_jax.networks import squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

TARGETS = ("stream", "origin")


@functools.cache
def _jitted(network):
    """`step.computation_step`, compiled once for a network."""
    return jax.jit(functools.partial(step.computation_step, network, squared_error))


def _run(
    network, params, state, frames, targets,
    *, target="stream", rng=None, first=0, spoil=lambda in_flight: in_flight, learning_rate=None,
):  # fmt: skip
    """A Python loop over `computation_step`: the list of its results, and the parameters.

    `spoil` changes the in-flight state before every step; `first` is the id of the first frame.
    """
    in_flight = step.init_in_flight(
        network, params, state, frames[0], targets[0], target_alignment=target
    )
    advance = _jitted(network)
    results = []
    for k in range(len(frames)):
        result = advance(
            params, state, spoil(in_flight), frames[k], targets[k], jnp.int32(first + k), rng=rng
        )
        in_flight, state = result.in_flight, result.state
        if learning_rate is not None:
            params = _descend(params, result.grads, result.trained, learning_rate)
        results.append(result)
    return results, params


@jax.jit
def _descend(params, grads, trained, learning_rate):
    return tuple(
        jax.tree.map(lambda p, g, i=i: jnp.where(trained[i], p - learning_rate * g, p), *pair)
        for i, pair in enumerate(zip(params, grads, strict=True))
    )


def _column(results, name):
    return np.stack([np.asarray(getattr(result, name)) for result in results])


def _reference(network, params, state, frames, targets, target="stream", rng=None, **options):
    return reference.sideways_episode(
        network, squared_error, params, state, frames, targets,
        target=target, train=True, rng=rng, **options,
    )  # fmt: skip


# Frame ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(1, 7))
def test_the_gap_between_activation_and_pseudo_gradient(depth):
    num_frames = 2 * depth + 2
    start = networks.start(networks.dense_network, depth)
    clip = networks.random_clip(num_frames)
    results, _ = _run(*start, *clip)
    frames, origins = _column(results, "frames"), _column(results, "origins")
    trained, valid = _column(results, "trained"), _column(results, "valid")
    assert frames.dtype == origins.dtype == np.int32
    assert trained.dtype == valid.dtype == bool

    expected = _reference(*start, *clip)
    np.testing.assert_array_equal(frames, expected.trace.frames)
    np.testing.assert_array_equal(origins, expected.trace.origins)
    np.testing.assert_array_equal(trained, origins >= 0)
    np.testing.assert_array_equal(valid, expected.valid)
    np.testing.assert_array_equal(trained.sum(axis=0), expected.num_grads)
    for i in range(1, depth + 1):  # 1-based, as in the paper
        gaps = (frames - origins)[trained[:, i - 1], i - 1]
        assert len(gaps) > 0
        np.testing.assert_array_equal(gaps, 2 * (depth - i))


def test_frame_ids_go_on_where_the_caller_says():
    """An episode in the middle of a stream: ids, and with them the keys of dropout, are shifted."""
    start = networks.start(networks.dropout_network, 2)
    frames, targets = networks.random_clip(5)
    rng = jax.random.key(5)
    shifted, _ = _run(*start, frames, targets, rng=rng, first=40)
    np.testing.assert_array_equal(
        _column(shifted, "frames"), [[40, -1], [41, 40], [42, 41], [43, 42], [44, 43]]
    )
    np.testing.assert_array_equal(
        _column(shifted, "origins"), [[-1, -1], [-1, 40], [40, 41], [41, 42], [42, 43]]
    )
    # Frame 40 of module 0 draws from the key of frame 40.
    module, params, state = (part[0] for part in (start[0].modules, start[1], start[2]))
    key = jax.random.fold_in(jax.random.fold_in(rng, 0), 40)
    h, _ = module.apply(params, state, frames[0], train=True, rng=key)
    module, params, state = (part[1] for part in (start[0].modules, start[1], start[2]))
    key = jax.random.fold_in(jax.random.fold_in(rng, 1), 40)
    output, _ = module.apply(params, state, h, train=True, rng=key)
    assert_same(shifted[1].output, output)


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_steps_add_up_to_the_episode(target):
    start = networks.start(networks.mixed_network, 4)
    clip = networks.random_clip(9, networks.PIXELS)
    rng = jax.random.key(2)
    results, _ = _run(*start, *clip, target=target, rng=rng)
    expected = _reference(*start, *clip, target=target, rng=rng)
    _assert_adds_up(results, expected)


def _assert_adds_up(results, expected):
    totals = [result.grads for result in results]
    for i, gamma in enumerate(expected.num_grads):
        mean = jax.tree.map(
            lambda *leaves, n=gamma: np.sum(np.stack(leaves), axis=0) / n,
            *(grads[i] for grads in totals),
        )
        assert_same(mean, expected.grads[i], what=f"module {i}")
    for k, result in enumerate(results):
        for i, trained in enumerate(result.trained):
            if not trained:  # exactly zero, not merely to be ignored
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(result.grads[i]))
        if expected.valid[k]:
            np.testing.assert_allclose(result.loss, expected.trace.losses[k], rtol=0, atol=1e-10)
            assert_same(result.output, expected.outputs[k])
    assert_same(results[-1].state, expected.state)


def test_module_step_is_the_vector_jacobian_product_at_the_same_input():
    """Equations 3 and 4 for one module, with an activation that is a pytree."""
    module = networks.chain(networks.fork(4), networks.inside(networks.batch_norm()))
    x = networks.random_clip(1)[0][0]
    params, state = module.init(jax.random.key(0), x)
    y, new_state = module.apply(params, state, x, train=True, rng=None)
    row = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), y)

    def projection(params, x):
        y, _ = module.apply(params, state, x, train=True, rng=None)
        parts = jax.tree.map(lambda a, b: jnp.sum(a * b), y, row)
        return sum(jax.tree.leaves(parts))

    result = jax.jit(functools.partial(step.module_step, module))(params, state, x, row)
    grads, pseudo_gradient = jax.jit(jax.grad(projection, argnums=(0, 1)))(params, x)
    assert_same(result.output, y)
    assert_same(result.grads, grads)
    assert_same(result.pseudo_gradient, pseudo_gradient)
    assert_same(result.state, new_state)


# Nothing leaks ----------------------------------------------------------------------------------


def _nan_like(leaf):
    return jnp.full_like(leaf, jnp.nan)


def _poison(in_flight):
    """Fills every slot that holds nothing, by its frame id, with NaN."""

    def spoil(slots, frame_ids):
        assert len(slots) == len(frame_ids)
        return tuple(
            jax.tree.map(_nan_like, slot) if frame < 0 else slot
            for slot, frame in zip(slots, np.asarray(frame_ids), strict=True)
        )

    return in_flight._replace(
        activations=spoil(in_flight.activations, in_flight.activation_frames),
        pseudo_gradients=spoil(in_flight.pseudo_gradients, in_flight.pseudo_gradient_frames),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("depth", [2, 4])
def test_bubbles_full_of_nan_leak_nothing(depth, target):
    start = networks.start(networks.keyless_mixed_network, depth)
    clip = networks.random_clip(2 * depth + 1, networks.PIXELS)
    clean, _ = _run(*start, *clip, target=target)
    spoilt_slots = []

    def spoil(in_flight):
        poisoned = _poison(in_flight)
        if not spoilt_slots:  # before the first step no target is in flight either
            poisoned = poisoned._replace(targets=jax.tree.map(_nan_like, in_flight.targets))
        leaves = jax.tree.leaves((poisoned.activations, poisoned.pseudo_gradients))
        spoilt_slots.append(sum(bool(jnp.isnan(leaf).any()) for leaf in leaves))
        return poisoned

    poisoned, _ = _run(*start, *clip, target=target, spoil=spoil)
    assert spoilt_slots[0] > 0  # the poison was there
    assert spoilt_slots[0] > spoilt_slots[2 * depth - 2]
    for before, after in zip(clean, poisoned, strict=True):
        for name in ("state", "grads", "trained", "output", "valid", "loss", "frames", "origins"):
            assert_same(getattr(after, name), getattr(before, name), atol=0, what=name)
    _assert_adds_up(poisoned, _reference(*start, *clip, target=target))


def test_an_empty_pipeline_of_a_network_that_cannot_take_zeros():
    start = networks.start(networks.fragile_network, 4)
    clip = networks.random_clip(9)
    results, _ = _run(*start, *clip)
    for result in results:
        for name in ("grads", "loss", "output", "state"):
            leaves = jax.tree.leaves(getattr(result, name))
            assert all(np.isfinite(leaf).all() for leaf in leaves), name


# Weights that change ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_online_learning_uses_the_weights_of_now(depth):
    start = networks.start(networks.batch_norm_network, depth)
    clip = networks.random_clip(2 * depth + 4)
    results, params = _run(*start, *clip, learning_rate=0.05)
    expected = _reference(*start, *clip, learning_rate=0.05)
    assert_same(params, expected.params)
    assert_same(results[-1].state, expected.state)


@pytest.mark.parametrize("execution", ["scan", "time_parallel"])
@pytest.mark.parametrize("rule", ["sideways", "backprop"])
def test_train_step_descends_along_the_averaged_gradient(rule, execution):
    """Three episodes in a row: the pipeline is emptied in between, the statistics are kept."""
    network, _, _ = networks.start(networks.batch_norm_network, 2)
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(0.1), rule=rule, execution=execution
    )
    train_step = jax.jit(train_step)
    train_state = init(jax.random.key(0), networks.random_clip(1)[0][0])
    params, state = train_state.params, train_state.state
    for seed in range(3):
        frames, targets = networks.random_clip(7, seed=seed)
        train_state, metrics = train_step(train_state, frames, targets)
        options = {"train": True, "rng": None, "target": "stream"}
        expected = {
            "sideways": reference.sideways_episode,
            "backprop": reference.backprop_episode,
        }[rule](network, squared_error, params, state, frames, targets, **options)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, expected.grads)
        state = expected.state
        assert_same(train_state.params, params)
        assert_same(train_state.state, state)
        assert metrics["loss"] == pytest.approx(float(expected.loss), rel=1e-6)


def test_online_train_step_carries_the_pipeline_from_call_to_call():
    """`update_every=1`: two clips are one stream of frames."""
    network, _, _ = networks.start(networks.batch_norm_network, 2)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(0.05), update_every=1)
    train_step = jax.jit(train_step)
    frames, targets = networks.random_clip(12)
    train_state = init(jax.random.key(0), frames[0])
    expected = _reference(
        network, train_state.params, train_state.state, frames, targets, learning_rate=0.05
    )
    for k in (0, 6):
        train_state, _ = train_step(train_state, frames[k : k + 6], targets[k : k + 6])
    assert_same(train_state.params, expected.params)
    assert_same(train_state.state, expected.state)


def test_online_training_leaves_a_module_alone_until_it_has_a_gradient():
    """`gamma_i = 0` means no update, not even weight decay."""
    network, _, _ = networks.start(networks.dense_network, 3)
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))
    init, train_step = step.make_train_step(network, squared_error, tx, update_every=1)
    train_step = jax.jit(train_step)
    frames, targets = networks.random_clip(5)
    before = init(jax.random.key(0), frames[0])
    after, _ = train_step(before, frames[:4], targets[:4])  # gamma is 0, 1, 2
    assert_same(after.params[0], before.params[0], atol=0)
    assert all(largest_difference(after.params[i], before.params[i]) > 0 for i in (1, 2))
    last, _ = train_step(after, frames[4:], targets[4:])
    assert largest_difference(last.params[0], before.params[0]) > 0
