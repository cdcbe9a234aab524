import itertools

import numpy as np
import pytest

import data
from data.sets import moving_digits


@pytest.fixture
def config():
    config = data.default_config("moving_digits")
    config.num_train, config.num_test = 60, 20
    config.num_frames, config.length = 8, 12
    return config


def test_paths_glide_and_stay_inside():
    frames = np.arange(500)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        places = moving_digits.path(rng, frames, room=30, speed=1.5)
        assert places.min() >= 0
        assert places.max() <= 30
        steps = np.diff(places, axis=0)
        # Never faster than the speed, and exactly as fast wherever it does not bounce.
        lengths = np.hypot(*steps.T)
        assert lengths.max() <= 1.5 + 1e-9
        straight = (np.abs(places[1:] - 15) < 13).all(1) & (np.abs(places[:-1] - 15) < 13).all(1)
        np.testing.assert_allclose(lengths[straight], 1.5)
        # It comes to every border.
        assert places.min() < 3
        assert places.max() > 27


def test_path_without_room_to_move():
    rng = np.random.default_rng(0)
    assert not moving_digits.path(rng, np.arange(5), room=0, speed=2.0).any()


def test_paint_moves_the_digit_by_fractions_of_a_pixel():
    image = np.zeros((8, 8), np.float32)
    image[2:6, 3:5] = 1
    places = np.array([[4, 6], [4.25, 6], [5, 6], [4, 9.5]])
    frames = moving_digits.paint(image, places, size=32, digit_size=16)
    assert frames.shape == (4, 32, 32, 3)
    assert frames.dtype == np.uint8
    assert (frames == frames[..., :1]).all()  # grey
    np.testing.assert_array_equal(frames[2, 1:], frames[0, :-1])  # one pixel down
    grey = frames[..., 0].astype(float)
    rows = (grey.sum(2) * np.arange(32)).sum(1) / grey.sum((1, 2))
    columns = (grey.sum(1) * np.arange(32)).sum(1) / grey.sum((1, 2))
    # The centre of mass is where the place says: the ink is centred in the digit.
    np.testing.assert_allclose(rows, places[:, 0] + 7.5, atol=0.05)
    np.testing.assert_allclose(columns, places[:, 1] + 7.5, atol=0.05)


def test_paint_at_the_size_it_is_stored_is_the_digit():
    image = np.random.default_rng(0).integers(0, 17, (8, 8)) / np.float32(16)
    [frame] = moving_digits.paint(image, np.array([[2, 3]]), size=12, digit_size=8)
    np.testing.assert_array_equal(frame[2:10, 3:11, 0], np.rint(255 * image))
    assert frame[..., 0].sum() == np.rint(255 * image).sum()


def test_any_run_of_the_digits_has_about_as_many_of_each():
    images, labels = moving_digits._digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert np.bincount(labels[:1437]).min() >= 140
    assert np.bincount(labels[-360:]).min() >= 30
    assert np.bincount(labels[:60]).tolist() == [6] * 10


def test_training_and_test_digits_are_disjoint(monkeypatch, config):
    made = []

    class Recorded(moving_digits.MovingDigits):
        def __init__(self, images, labels, **settings):
            made.append(images)
            super().__init__(images, labels, **settings)

    monkeypatch.setattr(moving_digits, "MovingDigits", Recorded)
    config.num_train, config.num_test = 1437, 360
    data.load(config, seed=0)
    train, test = ({image.tobytes() for image in images} for images in made)
    assert len(made[0]) == 1437
    assert len(made[1]) == 360
    assert not train & test


def test_every_test_digit_once(config):
    seen = {}
    for batch in data.load(config, seed=0).test(batch_size=3):
        assert batch["frames"].shape == (3, 8, 64, 64, 3)
        for frames, label, video, mask in zip(
            batch["frames"], batch["label"], batch["video"], batch["mask"], strict=True
        ):
            if video >= 0:
                seen.setdefault(int(video), []).append((int(label), frames[mask]))
    assert sorted(seen) == list(range(20))
    _, labels = moving_digits._digits()
    for video, rows in seen.items():
        assert {label for label, _ in rows} == {labels[-20:][video]}
        frames = np.concatenate([frames for _, frames in rows])
        assert len(frames) == 12
        # One path goes through all clips of the video: neighbouring frames are near each other.
        centre = (frames[..., 0] * np.arange(64.0)).sum((1, 2)) / frames[..., 0].sum((1, 2))
        assert np.abs(np.diff(centre)).max() < 2


def first(source, num_batches=2):
    with_iterator = iter(source.train)
    batches = [next(with_iterator) for _ in range(num_batches)]
    with_iterator.close()
    return np.concatenate([batch["frames"] for batch in batches])


def all_test_frames(source):
    return np.concatenate([batch["frames"] for batch in source.test()])


def test_a_function_of_the_seed(config):
    once, again, other = (data.load(config, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first(once), first(again))
    np.testing.assert_array_equal(all_test_frames(once), all_test_frames(again))
    assert (first(once) != first(other)).any()
    assert (all_test_frames(once) != all_test_frames(other)).any()


def test_a_new_path_in_every_epoch(config):
    config.num_train, config.batch_size = 1, 1
    frames = first(data.load(config, seed=0), 5)
    assert len({clip.tobytes() for clip in frames}) == 5


def test_training_moves_at_the_stride(config):
    config.stride, config.speed, config.length = 3, 1.0, 24
    centres = (first(data.load(config, seed=0))[..., 0] * np.arange(64.0)).sum((2, 3))
    centres /= first(data.load(config, seed=0))[..., 0].sum((2, 3))
    assert 2 < np.abs(np.diff(centres)).max() < 3.2


@pytest.fixture
def directed(config):
    config.task = "direction"
    config.size, config.digit_size, config.speed = 20, 8, 1.0
    return config


def test_the_direction_is_the_label(directed):
    """What a torus shows: every frame is the one before, shifted by the direction's velocity."""
    source = data.load(directed, seed=0)
    assert list(source.classes) == [
        "right", "down right", "down", "down left", "left", "up left", "up", "up right",
    ]  # fmt: skip
    steps = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
    seen = set()
    for batch in source.test(batch_size=8):
        for frames, label, mask in zip(batch["frames"], batch["label"], batch["mask"], strict=True):
            step = steps.get(source.classes[label])
            if step is None or mask.sum() < 2:
                continue
            first, second = frames[0, ..., 0], frames[1, ..., 0]
            # Interpolated pixels are rounded twice.
            np.testing.assert_allclose(np.roll(first, step, (0, 1)), second.astype(int), atol=1)
            seen.add(step)
    assert len(seen) == 4


def test_diagonals_are_as_fast(directed):
    rng = np.random.default_rng(0)
    places = moving_digits.straight(rng, np.arange(9), size=1000, speed=2.0, angle=np.pi / 4)
    np.testing.assert_allclose(np.diff(places, axis=0) % 1000, np.sqrt(2))


def test_every_digit_moves_in_every_direction(directed):
    """So that neither a single frame nor the digit says anything."""
    source = data.load(directed, seed=0)
    assert (source.num_train, source.num_test) == (60 * 8, 20 * 8)
    labels = np.asarray(source.videos["test"].labels).reshape(20, 8)
    assert (labels == np.arange(8)).all()
    ink = {}
    for batch in source.test(batch_size=16):
        for frames, video in zip(batch["frames"], batch["video"], strict=True):
            if video >= 0:
                ink.setdefault(int(video) // 8, []).append(frames[0].sum())
    assert len(ink) == 20
    for of_digit in ink.values():  # The same digit: as much ink, wherever it is on the torus.
        np.testing.assert_allclose(of_digit, of_digit[0], rtol=0.02)


def test_clutter_lies_over_the_same_digits(config):
    """The digits and their paths are those without it, and more of the canvas is painted."""
    plain = data.load(config, seed=3)
    config.clutter = 3
    cluttered, again = data.load(config, seed=3), data.load(config, seed=3)
    alone, both = all_test_frames(plain), all_test_frames(cluttered)
    assert (both >= alone).all()
    more = (both > alone).any((2, 3, 4))  # of every frame of every clip
    assert more[alone.any((2, 3, 4))].mean() > 0.9  # The others fill clips up.
    np.testing.assert_array_equal(both, all_test_frames(again))
    np.testing.assert_array_equal(first(cluttered), first(again))
    # It moves, too: what is beside the digit differs from frame to frame.
    beside = np.where(alone[0] == 0, both[0].astype(int), 0)
    assert all((a != b).any() for a, b in itertools.pairwise(beside[:8]))
    fingerprints = {one.videos["test"].fingerprint for one in (plain, cluttered, again)}
    assert len(fingerprints) == 2


def test_a_set_without_clutter_keeps_its_fingerprint(config):
    """Runs of before there was any go on."""
    assert data.load(config, seed=3).videos["test"].fingerprint == "0f205a37be3df7c1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "directions"}, "task is 'directions'; it must be 'digit' or 'direction'"),
        ({"digit_size": 65}, "digit_size is 65; on a canvas of size 64 it must be from 1 to 64"),
        ({"digit_size": 0}, "digit_size is 0"),
        ({"length": 0}, "length is 0"),
        ({"speed": -1.0}, "speed is -1.0"),
        ({"clutter": -1}, "clutter is -1; it must be 0 or more"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_train": 1500, "num_test": 300}, "is 1800; .* there are 1797"),
    ],
)
def test_out_of_range(config, changes, message):
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        data.load(config, seed=0)
