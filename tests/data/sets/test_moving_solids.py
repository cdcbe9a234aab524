import itertools
import json

import numpy as np
import pytest

import data
from data.sets import moving_solids

LENGTH = 7


@pytest.fixture
def config():
    config = data.default_config("moving_solids")
    config.size, config.length, config.supersample = 16, LENGTH, 1
    config.batch_size, config.num_train, config.num_test = 3, 5, 4
    return config


def take(config, num_steps=None, seed=0, split="train", state=None):
    streams = data.load_streams(config, seed=seed, split=split)
    try:
        if state is not None:
            streams.set_state(state)
        batches = list(itertools.islice(streams, num_steps))
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    finally:
        streams.close()


def render(config, split, scene, frame, seed=0):
    return moving_solids.render(
        seed, split, scene, frame, size=config.size, supersample=config.supersample
    )


def test_training_streams_start_one_after_the_other(config):
    played = take(config, 3 * LENGTH)
    assert played["frames"].shape == (3 * LENGTH, 3, 16, 16, 3)
    for slot, first in enumerate((0, 2, 4)):  # b/B of the way through
        starts = [0, *range(LENGTH - first, 3 * LENGTH, LENGTH)]
        assert np.flatnonzero(played["reset"][:, slot]).tolist() == starts
        t = first
        for frame, reset, stream in zip(
            *(played[name][:, slot] for name in ("frames", "reset", "stream")), strict=True
        ):
            t = 0 if reset and t >= LENGTH else t
            np.testing.assert_array_equal(frame, render(config, "train", int(stream), t))
            t += 1


def test_an_epoch_plays_every_training_scene_once(config):
    played = take(config, 10 * LENGTH)
    starts = played["reset"]
    order = played["stream"][starts]  # by step, then slot: the first ones are staggered
    firsts = [played["stream"][starts[:, slot], slot] for slot in range(3)]
    in_order = [int(one) for ones in zip(*firsts, strict=False) for one in ones]
    assert sorted(in_order[:5]) == sorted(in_order[5:10]) == list(range(5))
    assert in_order[:5] != in_order[5:10]
    assert order.min() == 0
    assert order.max() == 4


def test_testing_plays_every_test_scene_once(config):
    streams = data.load_streams(config, seed=0, split="test")
    assert streams.num_steps == 2 * LENGTH
    played = take(config, split="test")
    assert len(played["frames"]) == 2 * LENGTH
    assert played["stream"][::LENGTH].tolist() == [[0, 1, 2], [3, -1, -1]]
    assert np.flatnonzero(played["reset"].all(1)).tolist() == [0, LENGTH]
    assert played["reset"].sum() == 6
    assert not played["frames"][LENGTH:, 1:].any()
    for t in range(LENGTH):
        np.testing.assert_array_equal(played["frames"][t, 1], render(config, "test", 1, t))
        np.testing.assert_array_equal(played["frames"][LENGTH + t, 0], render(config, "test", 3, t))


@pytest.mark.parametrize("step", [0, 1, 5, 7, 16])
def test_goes_on_exactly(config, step):
    whole = take(config, 20)
    streams = data.load_streams(config, seed=0)
    for _ in range(step):
        next(streams)
    state = json.loads(json.dumps(streams.get_state()))
    streams.close()
    rest = take(config, 20 - step, state=state)
    for name, expected in whole.items():
        np.testing.assert_array_equal(rest[name], expected[step:])


def test_a_function_of_the_seed(config):
    once, again, other = (take(config, 4, seed=seed)["frames"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_no_scene_is_both_for_training_and_for_testing():
    solids = {
        split: {repr(moving_solids.make_scene(0, split, n).solids) for n in range(50)}
        for split in ("train", "test")
    }
    starts = {
        split: {
            moving_solids.make_scene(0, split, n).places(np.array([0])).centre.tobytes()
            for n in range(50)
        }
        for split in ("train", "test")
    }
    assert len(solids["train"] | solids["test"]) == 100
    assert len(starts["train"] | starts["test"]) == 100


def test_stride(config):
    config.stride = 4
    played = take(config, split="test")
    assert len(played["frames"]) == 2 * LENGTH
    np.testing.assert_array_equal(played["frames"][5, 2], render(config, "test", 2, 20))


@pytest.mark.parametrize("stride", [1, 4])
def test_targets_are_frames_of_the_future(config, stride):
    """Of the same scene, also where it ends; frames and resets are what they were."""
    config.stride = stride
    plain = take(config, 3 * LENGTH)
    config.future = 3
    played = take(config, 3 * LENGTH)
    targets = played.pop("targets")
    for name, expected in plain.items():
        np.testing.assert_array_equal(played[name], expected)
    for slot, t in enumerate((0, 2, 4)):
        for step, target in enumerate(targets[:, slot]):
            t = 0 if step and played["reset"][step, slot] else t
            scene = int(played["stream"][step, slot])
            expected = render(config, "train", scene, stride * (t + 3))
            np.testing.assert_array_equal(target, expected)
            t += 1


def test_targets_go_on_exactly(config):
    config.future = 2
    whole, streams = take(config, 12), data.load_streams(config, seed=0)
    for _ in range(6):  # The second slot is one frame before its end.
        next(streams)
    state = json.loads(json.dumps(streams.get_state()))
    streams.close()
    rest = take(config, 6, state=state)
    np.testing.assert_array_equal(rest["targets"], whole["targets"][6:])
    config.future = 0
    with pytest.raises(ValueError, match="future was 2 and is None"):
        take(config, 6, state=state)


def test_neighbouring_frames_differ_a_little(config):
    config.size, config.length, config.supersample = 48, 90, 2
    frames = take(config, split="test")["frames"][:90, 0].astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert 0.05 < change.mean() < 3  # of 255
    assert change.max() < 6
    # Things far apart in time differ by much more.
    assert np.abs(frames[60] - frames[0]).mean() > 3 * change.mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"supersample": 0}, "supersample is 0"),
        ({"num_test": 0}, "num_test is 0"),
        ({"future": -1}, "future is -1 steps; it must be 0 or more"),
        ({"zoom": 0.5}, "zoom is 0.5; it must be from 1 to 100"),
        ({"batch_size": 8}, "length is 7; .* at least batch_size=8"),
    ],
)
def test_out_of_range(config, changes, message):
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        data.load_streams(config, seed=0)


def test_other_arguments_that_are_wrong(config):
    with pytest.raises(ValueError, match="split is 'all'; it can be train or test"):
        data.load_streams(config, seed=0, split="all")
    with pytest.raises(ValueError, match="the seed is -1"):
        data.load_streams(config, seed=-1)
    state = data.load_streams(config, seed=0).get_state()
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        data.load_streams(config, seed=1).set_state(state)
