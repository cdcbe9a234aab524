import numpy as np
import pytest

from data.batches import sampling
from data.video import boxes


def starts(num_frames, clip_length, stride=1, draws=4000):
    rng = np.random.default_rng(0)
    return [
        int(sampling.clip_frames(rng, num_frames, clip_length, stride)[0]) for _ in range(draws)
    ]


def assert_uniform(drawn, values):
    """Every value about as often as the others: within 5 standard deviations of a binomial."""
    drawn = np.asarray(drawn)
    expected = len(drawn) / len(values)
    counts = [np.count_nonzero(drawn == value) for value in values]
    assert sum(counts) == len(drawn)
    assert np.abs(np.array(counts) - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("stride", [1, 2, 6])
def test_training_clip_is_a_contiguous_run_then_strided(stride):
    for seed in range(20):
        frames = sampling.clip_frames(np.random.default_rng(seed), 60, 8, stride)
        assert frames.shape == (8,)
        assert set(np.diff(frames)) == {stride}
        assert frames[0] >= 0
        # The whole run of stride * 8 frames is inside the video, not only the frames taken.
        assert frames[0] + stride * 8 <= 60


@pytest.mark.parametrize(
    ("num_frames", "clip_length", "stride", "expected"),
    [
        (3, 8, 1, [0, 1, 2, 0, 1, 2, 0, 1]),  # shorter than the clip
        (1, 4, 1, [0, 0, 0, 0]),  # a still picture
        (5, 4, 2, [0, 2, 4, 1]),  # longer than the clip, shorter than the run
        (4, 4, 1, [0, 1, 2, 3]),  # exactly the clip
        (2, 3, 2, [0, 0, 0]),  # the stride meets the same frame again
    ],
)
def test_torus_padding(num_frames, clip_length, stride, expected):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert sampling.clip_frames(rng, num_frames, clip_length, stride).tolist() == expected


@pytest.mark.parametrize(
    ("num_frames", "clip_length", "stride", "num_starts"),
    [(20, 8, 1, 13), (20, 4, 3, 9), (9, 8, 1, 2)],
)
def test_starts_are_uniform(num_frames, clip_length, stride, num_starts):
    assert_uniform(starts(num_frames, clip_length, stride), range(num_starts))


def test_a_clip_is_a_function_of_the_generator():
    def draw(seed):
        return sampling.clip_frames(np.random.default_rng(seed), 1000, 8).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9, 48, 50, 97])
@pytest.mark.parametrize("stride", [1, 3])
def test_covering_clips_take_every_frame_once(num_frames, stride):
    covering = sampling.covering_clips(num_frames, 8, stride)
    assert len(covering) == sampling.num_covering_clips(num_frames, 8, stride)
    assert sorted(np.concatenate(covering).tolist()) == list(range(num_frames))
    assert all(1 <= len(frames) <= 8 for frames in covering)
    assert all(set(np.diff(frames)) <= {stride} for frames in covering)


def test_random_crop_is_inside_and_uniform():
    rng = np.random.default_rng(0)
    boxes = [sampling.random_crop(rng, 9, 12, 7) for _ in range(4000)]
    assert {(box.height, box.width) for box in boxes} == {(7, 7)}
    assert_uniform([box.top for box in boxes], range(3))
    assert_uniform([box.left for box in boxes], range(6))
    # Top and left are drawn apart.
    assert_uniform([6 * box.top + box.left for box in boxes], range(18))


def test_crop_as_large_as_the_frame():
    assert sampling.random_crop(np.random.default_rng(0), 5, 5, 5) == (0, 0, 5, 5)
    assert sampling.centre_crop(5, 5, 5) == (0, 0, 5, 5)


@pytest.mark.parametrize("size", [0, 8, 13])
def test_crop_that_does_not_fit(size):
    with pytest.raises(ValueError, match=f"{size}x{size} pixels does not fit .* 7x12"):
        sampling.random_crop(np.random.default_rng(0), 7, 12, size)
    with pytest.raises(ValueError, match="from 1 to 7"):
        sampling.centre_crop(7, 12, size)


def test_crop_and_flip_move_pixels_and_nothing_else():
    frames = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3)
    cropped = boxes.crop(frames, boxes.Box(top=1, left=2, height=2, width=3))
    assert cropped.tolist() == frames[:, 1:3, 2:5].tolist()
    flipped = sampling.flip(frames)
    for t in range(2):
        for column in range(5):
            assert flipped[t, :, column].tolist() == frames[t, :, 4 - column].tolist()


def test_pad_clip():
    frames = np.full((2, 3, 3, 3), 7, np.uint8)
    padded, mask = sampling.pad_clip(frames, 4)
    assert padded.dtype == np.uint8
    assert padded[:, 0, 0, 0].tolist() == [7, 7, 0, 0]
    assert mask.tolist() == [True, True, False, False]
    padded, mask = sampling.pad_clip(frames, 2)
    assert mask.all()


@pytest.mark.parametrize("wrong", ["num_frames", "clip_length", "stride"])
def test_numbers_below_one(wrong):
    numbers = {"num_frames": 5, "clip_length": 2, "stride": 1, wrong: 0}
    with pytest.raises(ValueError, match=f"{wrong} is 0; it must be at least 1"):
        sampling.clip_frames(np.random.default_rng(0), **numbers)
    with pytest.raises(ValueError, match=f"{wrong} is 0"):
        sampling.covering_clips(**numbers)
    with pytest.raises(ValueError, match=f"{wrong} is 0"):
        sampling.num_covering_clips(**numbers)
