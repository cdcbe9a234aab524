import pytest

from data.batches.source import make_source
from data.batches.videos import Splits
from tests.data import videos
from tests.data.batches.coded import OPTIONS, source


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"size": 0}, "size is 0"),
        ({"size": 11}, "a crop of 11x11 pixels does not fit into a frame of 10x12"),
        ({"stride": -1}, "stride is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -2}, "num_workers is -2"),
        ({"seed": -1}, "the seed is -1"),
        ({"train": []}, "there is no training video"),
        ({"count": 3}, "batch_size is 4; it must be a positive multiple of .* 3"),
        ({"index": 2, "count": 2}, "process_index is 2; with 2 processes .* from 0 to 1"),
    ],
)
def test_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        source(**wrong)


@pytest.mark.parametrize(
    ("classes", "train", "test", "message"),
    [
        ("abc", [5, 5], [5] * 4, "test video 3 has the label 3; it must be .* from 0 to 2"),
        ("a", [5, 5], [5], "training video 1 has the label 1; it must be .* from 0 to 0"),
        ("ab", [5, 0], [5], "training video 1 has 0 frames; it must be at least 1"),
    ],
)
def test_videos_that_cannot_be(classes, train, test, message):
    """A label without a class would train and test as a class that is not there."""
    splits = Splits(classes, *map(videos.CodedVideos, (train, test)))
    with pytest.raises(ValueError, match=message):
        make_source(splits, OPTIONS, seed=0)


def test_a_test_batch_size_that_cannot_be_shared():
    with pytest.raises(ValueError, match=r"batch_size is 3; .* 2"):
        source(count=2).test(3)
    with pytest.raises(ValueError, match="batch_size is -1"):
        source().test(-1)
