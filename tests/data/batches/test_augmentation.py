"""What is changed in a clip is changed alike in all of its frames."""

import numpy as np
import pytest

from data.batches import augmentation
from tests.data.batches.coded import batches, clips_of, source


@pytest.fixture
def clip():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_colours_change_alike_in_all_frames(clip):
    still = np.repeat(clip[:1], 5, axis=0)
    changed = augmentation.jittered(still, np.random.default_rng(3), 0.5)
    assert (changed == changed[:1]).all()
    assert (changed != still).mean() > 0.5
    assert (augmentation.jittered(clip, np.random.default_rng(3), 0.0) == clip).all()


def test_each_factor_does_what_its_name_says(clip):
    class Drawn:
        def __init__(self, *factors):
            self.factors = factors

        def uniform(self, low, high, size):
            assert (low, high, size) == (0.5, 1.5, 3)
            return np.array(self.factors)

    clip = clip // 4 + 64  # Nothing is clipped. OpenCV rounds factors to 1/1024: 0.55, not 0.5.
    grey = clip @ np.array([0.299, 0.587, 0.114])
    darker = augmentation.jittered(clip, Drawn(0.5, 1, 1), 0.5)
    np.testing.assert_allclose(darker, clip * 0.5, atol=0.55)
    flatter = augmentation.jittered(clip, Drawn(1, 0.5, 1), 0.5)
    np.testing.assert_allclose(flatter, (clip + grey.mean()) / 2, atol=0.55)
    paler = augmentation.jittered(clip, Drawn(1, 1, 0.5), 0.5)
    np.testing.assert_allclose(paler, (clip + grey[..., None]) / 2, atol=0.55)


def test_scaled_crops_show_more_or_less_of_the_frame():
    """Pixels say where they come from: their range is the side of the crop."""
    clips = clips_of(batches(8, scale=(0.5, 1.5), flip=False))
    sides = set()
    for frames, _ in clips:
        assert frames.shape == (4, 6, 6, 3)
        assert (frames[..., 1:] == frames[:1, ..., 1:]).all()  # The same crop in every frame.
        sides.add(int(frames[..., 1].max()) - int(frames[..., 1].min()) + 1)
    assert min(sides) <= 4
    assert max(sides) >= 7


def test_off_is_the_stream_that_it_was():
    state = iter(source().train).get_state()
    assert not {"scale", "colour"} & set(state["stream"])
    changed = iter(source(scale=(0.5, 1.0)).train)
    with pytest.raises(ValueError, match=r"scale was None and is \(0\.5, 1\.0\)"):
        changed.set_state(state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": (1.0, 0.5)}, "two numbers above 0, the larger one last"),
        ({"scale": (0.0, 1.0)}, "two numbers above 0"),
        ({"colour": 1.5}, r"colour is 1\.5; it must be from 0 to 1"),
    ],
)
def test_values_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        source(**options)
