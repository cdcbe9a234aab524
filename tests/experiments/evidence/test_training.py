"""What the studies train on and with: clips, pictures, the optimizer, streams that change."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.evidence.training import changing, future, networks, pictures, real_clips
from experiments.evidence.training.clips import clips, digits, shuffled
from experiments.evidence.training.optimizer import recording, settable, with_settings
from experiments.examples import videos
from sideways_jax.training.paper_optimizer import make_optimizer


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_optimizer_is_the_papers_with_its_rate_as_data(name):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
    grads = [jax.tree.map(lambda p, n=n: jnp.sin(3 * p + n) * 2, params) for n in range(5)]
    papers = make_optimizer(
        name, 0.1, steps_per_epoch=1, warmup_epochs=0, drop_epochs=(), weight_decay=0.01,
        decay_coupling="schedule",
    )  # fmt: skip
    ours = settable(name)
    state, expected_state = with_settings(ours.init(params), 0.1, 0.01), papers.init(params)
    mine, expected = params, params
    for grad in grads:
        changes, state = ours.update(grad, state, mine)
        mine = optax.apply_updates(mine, changes)
        changes, expected_state = papers.update(grad, expected_state, expected)
        expected = optax.apply_updates(expected, changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mine, expected)


def test_the_rate_and_the_decay_grow_in_the_warmup():
    tx, params = settable("sgd"), jnp.array([2.0])
    state = with_settings(tx.init(params), 0.1, 0.01, warmup=2)
    changes = []
    for _ in range(3):
        change, state = tx.update(jnp.array([1.0]), state, params)
        changes.append(float(change[0]))
    np.testing.assert_allclose(changes, [-0.06, -0.12, -0.12], rtol=1e-6)


def test_gradients_are_recorded_before_they_are_clipped():
    grads = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[12.0]])}
    tx = recording()
    passed, state = tx.update(grads, tx.init(grads))
    assert passed is grads
    assert (float(state.norm), round(float(state.mean), 5)) == (13.0, 3.66667)


def test_a_search_is_judged_on_digits_that_it_does_not_learn():
    """And neither are the digits that the comparison is tested on. The first digits are 0, 1, 2."""
    config = digits(True, num_train=3, num_test=20)
    search, compared = (clips(config, seed=0, search=one) for one in (True, False))

    def labels(batches):
        found = np.concatenate([batch["label"] for batch in batches])
        return found[found >= 0].tolist()

    assert set(labels(itertools.islice(search.train, 5))) == {0, 1}
    assert labels(search.tests["train"]) == [0, 1]
    assert labels(search.tests["test"]) == [2]
    assert set(labels(itertools.islice(compared.train, 5))) == {0, 1, 2}
    assert labels(compared.tests["train"]) == [0, 1, 2]
    assert len(labels(compared.tests["test"])) == 20


def test_shuffled_clips_have_the_same_frames():
    config = digits(True)
    plain = [next(clips(config, seed=0).train) for _ in range(1)]
    mixed = next(shuffled(iter(plain), seed=0))
    again = next(shuffled(iter(plain), seed=0))
    np.testing.assert_array_equal(mixed["frames"], again["frames"])
    assert (mixed["frames"] != plain[0]["frames"]).any()
    for one, other in zip(mixed["frames"], plain[0]["frames"], strict=True):
        assert sorted(f.tobytes() for f in one) == sorted(f.tobytes() for f in other)
    np.testing.assert_array_equal(mixed["label"], plain[0]["label"])


def test_parts_of_real_videos_are_learned_from_in_front_and_tested_behind(tmp_path):
    videos.write(tmp_path)
    made = real_clips.clips_of_parts(str(tmp_path), size=12, frames=3, batch=4, seed=0)
    files = list(real_clips.videos(str(tmp_path), 12).values())[:3]
    parts = [part for one in files for part in np.array_split(one, 3)]
    for name, tests in made.tests.items():
        shown = [
            (label, clip)
            for batch in tests
            for clip, label in zip(batch["frames"], batch["label"], strict=True)
            if label >= 0
        ]
        assert {label for label, _ in shown} == set(range(9))
        for label, clip in shown:
            cut = round(0.6 * len(parts[label]))
            allowed = parts[label][cut:] if name == "test" else parts[label][:cut]
            assert all(any((frame == one).all() for one in allowed) for frame in clip)
    batch = next(made.train)
    for label, clip in zip(batch["label"], batch["frames"], strict=True):
        learned = parts[label][: round(0.6 * len(parts[label]))]
        assert all(any((frame == one).all() for one in learned) for frame in clip)


def test_pictures_become_clips_whose_frames_differ_more_and_more():
    steps = {}
    for kind in pictures.KINDS:
        made = pictures.clips(kind, pictures.SMOKE._replace(batch=16), seed=0)
        batch = next(made.train)
        frames = batch["frames"].astype(float)
        steps[kind] = np.abs(np.diff(frames, axis=1)).mean()
        assert batch["frames"].shape == (16, 6, 12, 12, 3)
        assert batch["label"].shape == ((16, 6) if kind == "mixed" else (16,))
        again = next(pictures.clips(kind, pictures.SMOKE._replace(batch=16), seed=0).train)
        np.testing.assert_array_equal(batch["frames"], again["frames"])
    assert steps["still"] == 0 < steps["zoom"] < steps["pan"] < steps["shuffled"]
    assert 0 < steps["blend"] < steps["shuffled"]


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize(("learner", "period", "used"), [("blocking", 5, 1), ("skipping", 5, 3)])
def test_frames_that_are_dropped_change_no_weights(stream, learner, period, used):
    """D = 3 modules: of 5 frames the first is learned from, or the first three."""
    other = stream.copy()
    for n in range(used, period):
        other[n::period] = 0
    params = changing.pretrained(changing.SMOKE, "", 0)
    zeros = np.zeros_like(stream[:period])
    found = []
    for frames in (stream, other):
        frames = np.concatenate([frames, zeros])
        *_, (at, error) = changing.errors(learner, "sgd", 0.1, changing.SMOKE, frames, params)
        assert at == 30
        found.append(error)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    untrained = next(changing.errors(learner, "sgd", 0.1, changing.SMOKE, zeros, params))[1]
    assert abs(found[0] - untrained) > 1e-6


def test_data_parallel_backprop_uses_all_frames(stream):
    params = changing.pretrained(changing.SMOKE, "", 0)
    errors = [
        [error for _, error in
         changing.errors("data_parallel", "sgd", 0.1, changing.SMOKE, frames, params)]
        for frames in (stream, np.concatenate([stream[:2], stream[3:4], stream[3:]]))
    ]  # fmt: skip
    assert len(errors[0]) == 10  # every D = 3 frames
    assert errors[0][1] != errors[1][1]


def test_a_stream_changes_where_it_says():
    size = changing.SMOKE
    frames = changing.frames(size, "", 3)
    assert frames.shape == (size.before + 3 * size.after, size.pixels, size.pixels, 3)
    light = frames[size.before : size.before + size.after]
    assert light.mean() > 1.2 * frames[: size.before].mean()
    assert light.std() < 0.7 * frames[: size.before].std()
    jumps = np.abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
    starts = [size.before + n * size.after - 1 for n in range(3)]
    assert set(np.argsort(jumps)[-3:]) == set(starts)


@pytest.mark.full
def test_the_future_of_a_stream():
    """Targets are frames of later; who repeats the newest is wrong by what comes after it."""
    count = 4 * future.CHUNK
    frames = future.stream(future.SMOKE, count, 3)
    wanted = future.targets(frames)
    assert wanted.shape == (count, 1, 8, 8, 3 * len(future.AHEAD))
    np.testing.assert_array_equal(wanted[5, ..., 6:9], frames[5 + 3])
    np.testing.assert_array_equal(wanted[-1, ..., -3:], frames[-1])
    found = future.errors("sideways", True, 0.0, future.SMOKE, count, 3)
    start, parts = 3 * future.CHUNK, frames.astype(float) / 255
    expected = [
        np.square(parts[start:count] - parts[start + n : count + n]).mean() for n in future.AHEAD
    ]
    np.testing.assert_allclose(found["repeated"], expected, rtol=1e-4)
    # Untrained, the network that hears the frame is nearer to it than a black one.
    assert max(found["errors"]) < 0.03 < np.square(parts).mean()


@pytest.mark.parametrize("receiver", [3, 4])
def test_what_needs_two_frames_is_in_one_module(receiver):
    network = networks.with_receiver(receiver, 8)
    assert (network.depth, network.shortcuts) == (5, ((-1, receiver),))
    params, _ = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, 20, 20, 3)))
    convolutions = [len([x for x in jax.tree.leaves(one) if x.ndim == 4]) for one in params]
    assert convolutions == [3 if i == receiver else int(i < 4) for i in range(5)]
