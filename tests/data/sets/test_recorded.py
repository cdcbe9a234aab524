"""Clips out of a build: frames say their number, so every index can be read off."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest

import data
from data.batches import sampling
from data.building import builder, stored
from data.building.hmdb51 import hmdb51_dataset_builder
from data.sets import recorded
from data.video import boxes
from tests.data import downloads, videos

BOX = boxes.Box(0, 0, videos.HEIGHT, videos.WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hmdb51")
    builder.build(
        hmdb51_dataset_builder.Builder,
        downloads.hmdb51(folder / "downloads"),
        folder / "data",
        name="test",
        resize=0,
        num_processes=1,
    )
    return folder / "data"


def config_of(folder, **fields):
    config = data.default_config("hmdb51")
    config.path, config.variant = str(folder), "test"
    config.num_frames, config.size, config.batch_size = 16, 48, 2
    config.update(fields)
    return config


def take(number, folder, *, state=None, index=0, count=1, **fields):
    source = data.load(
        config_of(folder, **fields), seed=3, process_index=index, process_count=count
    )
    stream = iter(source.train)
    if state is not None:
        stream.set_state(state)
    with videos.closing_all(stream):
        batches = [next(stream) for _ in range(number)]
        return batches, stream.get_state()


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("stride", [1, 2, 6])
def test_clips_are_contiguous_and_padded(folder, stride):
    made = stored.read_build("hmdb51", str(folder), "test")
    one = recorded.RecordVideos(made, range(7), None)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(60):
        index = int(rng.integers(7))
        frames = sampling.clip_frames(rng, one.num_frames[index], 16, stride)
        numbers = videos.numbers_of(one.read(index, frames, BOX, rng))
        assert numbers == [(numbers[0] + stride * n) % one.num_frames[index] for n in range(16)]
        starts.add(numbers[0])
    assert stride > 1 or len(starts) > 5


def test_crops_are_of_the_stored_frame(folder):
    made = stored.read_build("hmdb51", str(folder), "test")
    one = recorded.RecordVideos(made, [2], None)
    whole = one.read(0, np.arange(5), BOX, np.random.default_rng(0))
    box = boxes.Box(3, 9, 20, 30)
    part = one.read(0, np.arange(5), box, np.random.default_rng(0))
    np.testing.assert_array_equal(part, whole[:, 3:23, 9:39])
    np.testing.assert_array_equal(part, list(one.stream(0, box))[:5])


def test_the_order_is_the_same_for_any_number_of_workers_and_after_a_stop(folder):
    """Four epochs of three videos in batches of two; the stop is in the middle of the second."""
    alone, _ = take(6, folder)
    for num_workers in (1, 2):
        assert_same(take(6, folder, num_workers=num_workers)[0], alone)
    first, state = take(2, folder)
    rest, _ = take(4, folder, state=json.loads(json.dumps(state)))
    assert_same(first + rest, alone)


def test_processes_share_every_batch(folder):
    alone, _ = take(3, folder)
    parts = [take(3, folder, index=index, count=2)[0] for index in range(2)]
    for batch, *rows in zip(alone, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([row[name] for row in rows]))


def test_every_epoch_has_every_video(folder):
    batches, _ = take(6, folder, batch_size=1)
    labels = [int(batch["label"][0]) for batch in batches]
    assert sorted(labels[:3]) == sorted(labels[3:]) == [0, 0, 1]


def test_testing_takes_every_frame_once_by_two_processes(folder):
    seen = {}
    for index in range(2):
        source = data.load(config_of(folder), seed=0, process_index=index, process_count=2)
        for batch in source.test():
            for mask, video, label in zip(
                batch["mask"], batch["video"], batch["label"], strict=True
            ):
                if video >= 0:
                    seen[int(video), int(label)] = (
                        seen.get((int(video), int(label)), 0) + mask.sum()
                    )
    assert seen == {(0, 0): 22, (1, 1): 24}


def test_a_build_may_move(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    _, state = take(1, folder)
    batches, _ = take(1, tmp_path / "moved", state=state)
    assert_same(batches, take(2, folder)[0][1:])


def test_other_videos_are_noticed(folder):
    _, state = take(1, folder)
    with pytest.raises(ValueError, match="the checkpoint was made with other training batches"):
        take(1, folder, state=state, split="2")


def test_it_can_be_pickled_after_reading(folder):
    made = stored.read_build("hmdb51", str(folder), "test")
    one = recorded.RecordVideos(made, [1], None)
    before = one.read(0, np.array([4]), BOX, np.random.default_rng(0))
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.read(0, np.array([4]), BOX, None), before)


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"as side_128, but as test; build it with: python"):
        data.load(config_of(folder, variant="side_128"), seed=0)
    with pytest.raises(FileNotFoundError, match=r"not been built in .*--config.data.path=DIR"):
        data.load(config_of(tmp_path), seed=0)
    with pytest.raises(ValueError, match=r"no split '4' .* it has 1, 2"):
        data.load(config_of(folder, split="4"), seed=0)


def test_a_crop_that_does_not_fit(folder):
    with pytest.raises(ValueError, match="crop of 112x112 pixels does not fit into a frame of 48"):
        data.load(config_of(folder, size=112), seed=0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda at: (at / "metadata.json").unlink(), "metadata.json cannot be read"),
        (lambda at: (at / "metadata.json").write_text('{"format": 0}'), "has the format 0"),
        (lambda at: next(at.glob("*-rest.*")).unlink(), "has 5 records, and should have 7"),
        (lambda at: [f.unlink() for f in at.glob("*record-*")], "it has no .*array_record"),
    ],
)
def test_a_damaged_build(folder, tmp_path, damage, said):
    shutil.copytree(folder, tmp_path / "copy")
    damage(pathlib.Path(tmp_path / "copy" / "hmdb51" / "test" / "1.0.0"))
    with pytest.raises(ValueError, match=said):
        data.load(config_of(tmp_path / "copy"), seed=0)
