"""Online learning on batches of streams that start and end at different times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sideways_jax import make_mesh, step
from tests.sideways_jax import networks
from tests.sideways_jax.comparison import assert_same
from tests.sideways_jax.networks import squared_error
from tests.sideways_jax.reference import sideways_episode

RATE = 0.05


def _resets(num_frames, batch, seed=0):
    """The first frames of streams of 1 to 14 frames; example 0 goes on without an end."""
    rng = np.random.default_rng(seed)
    reset = np.zeros((num_frames, batch), bool)
    for b in range(1, batch):
        t = int(rng.integers(0, 4))
        while t < num_frames:
            reset[t, b] = True
            t += int(rng.integers(1, 15))
    return reset


@functools.partial(jax.jit, static_argnames="module")
def _linearised(module, params, state, x):
    """The output of a module for one example, and the function that takes a gradient back."""

    def forward(params, x):
        return module.apply(params, state, x[None], train=True, rng=None)[0][0]

    return jax.vjp(forward, params, x)


@jax.jit
def _pulled_back(vjp, cotangent):
    return vjp(cotangent)


@jax.jit
def _loss_and_gradient(output, label):
    return jax.value_and_grad(lambda y: squared_error(y[None], label[None]))(output)


def _reference(network, params, frames, targets, reset, *, update_every, target, state=None):
    """A Python loop over steps, examples and modules; every example has inboxes of its own.

    Returns the parameters, and by step and example the frame that is shown (or -1) and the loss.
    """
    depth, batch = network.depth, frames.shape[1]
    frames, targets, params = jax.tree.map(np.asarray, (frames, targets, list(params)))
    state = state or [()] * depth
    above = [[None] * depth for _ in range(batch)]  # [b][i]: (cotangent, frame), for module i
    below = [[None] * depth for _ in range(batch)]  # [b][i]: (activation, target, frame)
    shown = np.full(reset.shape, -1)
    losses = np.full(reset.shape, np.nan)
    sums, counts = [0.0] * depth, [0] * depth
    for t in range(len(frames)):
        for b in range(batch):
            if reset[t, b]:
                above[b], below[b] = [None] * depth, [None] * depth
            below[b][0] = frames[t, b], targets[t, b], t
            new_above, new_below = [None] * depth, [None] * depth
            for i in range(depth):
                if below[b][i] is None:
                    continue
                x, own_target, frame = below[b][i]
                y, vjp = _linearised(network.modules[i], params[i], state[i], x)
                cotangent = above[b][i]
                if i < depth - 1:
                    new_below[i + 1] = y, own_target, frame
                else:
                    label = own_target if target == "origin" else targets[t, b]
                    losses[t, b], cotangent = _loss_and_gradient(y, label)
                    shown[t, b] = frame
                if cotangent is None:
                    continue
                grads, sent_down = _pulled_back(vjp, cotangent)
                grads = jax.tree.map(np.asarray, grads)
                sums[i] = jax.tree.map(np.add, sums[i], grads) if counts[i] else grads
                counts[i] += 1
                if i:
                    new_above[i - 1] = sent_down
            above[b], below[b] = new_above, new_below
        if (t + 1) % update_every == 0:
            for i in range(depth):
                if counts[i]:
                    params[i] = jax.tree.map(
                        lambda p, g, n=counts[i]: p - RATE * g / n, params[i], sums[i]
                    )
            sums, counts = [0.0] * depth, [0] * depth
    return tuple(params), shown, losses


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("depth", "update_every", "target"),
    [(1, 1, "stream"), (2, 1, "origin"), (4, 1, "stream"), (4, 3, "origin"), (6, 1, "stream")],
)
def test_online_learning_is_the_loop(depth, update_every, target):
    network, params, _ = networks.start(networks.dense_network, depth)
    frames, targets = networks.random_clip(30)
    reset = _resets(30, networks.BATCH)
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(RATE), update_every=update_every, target=target,
        with_outputs=True, metrics_fn=lambda y, t: {"again": squared_error(y, t)},
    )  # fmt: skip
    train_state = init(jax.random.key(0), frames[0], targets[0])._replace(params=params)
    train_step = jax.jit(train_step)
    expected, shown, losses = _reference(
        network, params, frames, targets, reset, update_every=update_every, target=target
    )
    for k in (slice(0, 15), slice(15, 30)):  # Of one length: one program.
        train_state, metrics, outputs = train_step(train_state, frames[k], targets[k], reset[k])
        np.testing.assert_array_equal(outputs.frames, shown[k])
        assert metrics["loss"] == pytest.approx(np.nanmean(losses[k]), abs=1e-10)
        assert metrics["again"] == pytest.approx(np.nanmean(losses[k]), abs=1e-10)
    assert_same(train_state.params, expected, atol=1e-10)
    hidden = shown < 0
    assert depth == 1 or hidden.any()


def _singular():
    """Modules without a gradient at zero."""
    network = networks.Network(
        [
            networks.root(),
            networks.chain(networks.dense(4), networks.unit()),
            networks.chain(networks.root(), networks.unit(), networks.dense(5)),
            networks.chain(networks.unit(), networks.root(), networks.linear(networks.NUM_OUTPUTS)),
        ]
    )
    frames, targets = networks.random_clip(18)
    reset = _resets(18, networks.BATCH, seed=3)
    return network, frames, targets, reset


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("mesh", [None, (2, 1), (2, 3)])
def test_nothing_of_a_bubble_reaches_a_parameter_whatever_a_module_computes(mesh):
    network, frames, targets, reset = _singular()
    options = {}
    if mesh is not None:
        options = {"execution": step.Pipeline(make_mesh(*mesh), groups=(1, 3))}
    tx = optax.sgd(RATE)
    init, train_step = step.make_train_step(
        network, squared_error, tx, update_every=1, with_outputs=True, **options
    )
    start = init(jax.random.key(0), frames[0])
    params, state, to_modules = start.params, start.state, lambda train_state: train_state
    if mesh is not None:
        to_modules, _ = step.per_module(network, tx, make_mesh(*mesh), frames[0], (1, 3))
        params, state = to_modules(start)[1:3]
    expected, shown, losses = _reference(
        network, params, frames, targets, reset, update_every=1, target="stream", state=state
    )
    assert np.isfinite(jax.tree.leaves(expected)[0]).all()
    train_state, metrics, outputs = jax.jit(train_step)(start, frames, targets, reset)
    np.testing.assert_array_equal(outputs.frames, shown)
    assert_same(to_modules(train_state).params, expected, atol=1e-10)
    assert metrics["loss"] == pytest.approx(np.nanmean(losses), abs=1e-10)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_examples_that_wait_for_a_pseudo_gradient_stay_as_they_are():
    """Batch normalisation sees the real batch in a module that holds no bubble."""
    network, _, _ = networks.start(networks.batch_norm_network, 3)
    frames, targets = networks.random_clip(9)
    params, state = network.init(jax.random.key(1), frames[0])
    batch = networks.BATCH
    in_flight = step.init_in_flight(network, params, state, frames[0], per_example=True)
    advance = jax.jit(functools.partial(step.computation_step, network, squared_error))
    for t in range(9):
        if t == 6:
            in_flight = step.restart(in_flight, jnp.arange(batch) == 1)
        came = in_flight
        one = advance(params, state, came, frames[t], targets[t], jnp.full((batch,), t, jnp.int32))
        in_flight, state, before = one.in_flight, one.state, state
        trained = one.trained[0]
        cotangent = jnp.where(trained[:, None], came.pseudo_gradients[0], 0)
        _, vjp = jax.vjp(
            lambda p, t=t, before=before: network.modules[0].apply(
                p, before[0], frames[t], train=True, rng=None
            )[0],
            params[0],
        )
        if trained.any():
            assert_same(one.grads[0], vjp(cotangent)[0], atol=1e-12)
    assert trained.tolist() == [True, False, True]


@pytest.mark.usefixtures("x64", "quick_compile")
def test_dropout_draws_by_module_and_frame():
    """A key is the same when a frame goes up and when its gradient comes down, over calls, too."""
    network, params, state = networks.start(networks.dropout_network, 4)
    clip = networks.random_clip(14)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(RATE), update_every=1)
    train_state = init(jax.random.key(0), clip[0][0])._replace(params=params, state=state)
    expected = sideways_episode(
        network, squared_error, params, state, *clip, target="stream", train=True,
        rng=train_state.rng, learning_rate=RATE,
    )  # fmt: skip
    train_step = jax.jit(train_step)
    for k in (slice(0, 7), slice(7, 14)):
        train_state, _ = train_step(train_state, *(x[k] for x in clip))
    assert_same(train_state.params, expected.params, atol=1e-10)


def test_nothing_of_the_stream_before_leaks():
    network, params, _ = networks.start(networks.dense_network, 4)
    frames, targets = networks.random_clip(24)
    init, train_step = step.make_train_step(
        network, squared_error, optax.sgd(RATE, momentum=0.9), update_every=1, with_outputs=True,
        target="origin",
    )  # fmt: skip
    train_step = jax.jit(train_step)
    train_state = init(jax.random.key(0), frames[0], targets[0])._replace(params=params)
    on = np.zeros((12, networks.BATCH), bool)  # Given every time: one program.
    train_state, *_ = train_step(train_state, frames[:12], targets[:12], on)
    poisoned = jax.tree.map(
        lambda x: x.at[1].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x,
        train_state.in_flight,
    )
    reset = on.copy()
    reset[0, 1] = True
    results = [
        train_step(train_state._replace(in_flight=one), frames[12:], targets[12:], reset)
        for one in (train_state.in_flight, poisoned)
    ]
    assert_same(results[0][0].params, results[1][0].params, atol=0)
    assert_same(results[0][2], results[1][2], atol=0)
    assert np.isfinite(results[1][1]["loss"])
    # Without the reset it does get through: the poison was there.
    leaked, *_ = train_step(train_state._replace(in_flight=poisoned), frames[12:], targets[12:], on)
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(leaked.params))


@pytest.mark.usefixtures("quick_compile")
def test_statistics_move_only_when_no_example_is_a_bubble():
    network, _, _ = networks.start(networks.remembering_network, 3)
    frames, targets = networks.random_clip(7)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(RATE), update_every=1)
    train_step = jax.jit(train_step)
    train_state, moved = init(jax.random.key(0), frames[0]), []
    for t in range(7):  # One at a time: one program.
        before, reset = train_state, (t == 6) & (np.arange(networks.BATCH)[None] == 1)
        train_state, _ = train_step(before, frames[t : t + 1], targets[t : t + 1], reset)
        moved.append([
            any((a != b).any() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
            for pair in zip(before.state, train_state.state, strict=True)
        ])  # fmt: skip
    assert moved[0] == moved[6] == [True, False, False]
    assert moved[2:6] == [[True] * 3] * 4


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("make", [
    lambda *arguments: step.make_train_step(*arguments, update_every=1, target="origin"),
    lambda *arguments: step.make_train_step(*arguments, rule="backprop", update_every=1),
])  # fmt: skip
def test_what_init_gives_can_be_donated(make):
    """No array is in two places."""
    network, _, _ = networks.start(networks.dense_network, 3)
    frames, targets = networks.random_clip(1)
    init, _ = make(network, squared_error, optax.sgd(1.0))
    leaves = jax.tree.leaves(init(jax.random.key(0), frames[0], targets[0]))
    assert len({id(leaf) for leaf in leaves}) == len(leaves)


@pytest.mark.usefixtures("quick_compile")
def test_mistakes():
    network, _, _ = networks.start(networks.dense_network, 2)
    frames, targets = networks.random_clip(7)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(1.0), update_every=3)
    with pytest.raises(ValueError, match=r"7 frames do not divide .* multiple of 3"):
        train_step(init(jax.random.key(0), frames[0]), frames, targets)
    init, train_step = step.make_train_step(network, squared_error, optax.sgd(1.0), update_every=1)
    start = init(jax.random.key(0), frames[0])
    for arguments, said in (
        ((frames, targets[:3]), "7 frames but 3 targets"),
        ((frames[:, :1], targets[:, :1]), f"do not fit the {networks.BATCH} streams"),
        ((frames, targets, np.zeros(7, bool)), "must be .K, B. = .7, 3."),
    ):
        with pytest.raises(ValueError, match=said):
            train_step(start, *arguments)
    with pytest.raises(ValueError, match="with_outputs=True is for streams: set update_every"):
        step.make_train_step(network, squared_error, optax.sgd(1.0), with_outputs=True)
