import numpy as np
import pytest

import data
from data.building import builder, listing, stored
from data.building.cater import cater_dataset_builder
from data.sets import recorded
from data.video import boxes
from tests.data import downloads, videos


def build(folder, data_dir, **config):
    return builder.build(
        cater_dataset_builder.Builder,
        folder,
        data_dir,
        **{"name": "test", "resize": 40, "num_processes": 1, **config},
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cater")
    build(downloads.cater(folder / "downloads"), folder / "data")
    return str(folder / "data")


def config_of(data_dir, **fields):
    config = data.default_config("cater")
    config.path, config.variant = data_dir, "test"
    config.num_frames, config.size, config.batch_size, config.flip = 20, 40, 2, False
    config.update(fields)
    return config


def test_the_default_is_the_protocol_of_the_paper():
    config = data.default_config("cater")
    assert (config.variant, config.size, config.num_frames) == ("all_actions", 240, 64)
    assert not config.labels
    chosen = {one.name: one for one in cater_dataset_builder.Builder.BUILDER_CONFIGS}
    assert set(chosen) == set(cater_dataset_builder.SUBSETS)
    assert {one.resize for one in chosen.values()} == {240}


def test_tasks_labels_and_frames(data_dir):
    made = stored.read_build("cater", data_dir, "test")
    assert list(made.splits) == ["actions_present", "localize"]
    assert [len(split["classes"]) for split in made.splits.values()] == [14, 36]
    key = [entry.key for entry in made.videos]
    labels = {
        task: {key[number]: labels for part in ("train", "test") for number, labels in split[part]}
        for task, split in made.splits.items()
    }
    assert labels["actions_present"] == {
        "CATER_new_005748": [0, 3, 13],
        "CATER_new_000001": [2],
        "CATER_new_000012": [5, 6],
    }
    assert labels["localize"] == {
        "CATER_new_000001": [35],
        "CATER_new_005748": [0],
        "CATER_new_000012": [7],
    }
    chosen = recorded.RecordVideos(made, range(3), None)
    for index, name in enumerate(chosen.names):
        frames = list(chosen.stream(index, boxes.Box(0, 0, *chosen.frame_size(index))))
        assert videos.numbers_of(np.stack(frames)) == list(range(downloads.CATER[name]))


def test_frames_alone(data_dir):
    source = data.load(config_of(data_dir), seed=0)
    assert source.classes == ("video",)
    assert (source.num_train, source.num_test) == (2, 1)
    stream = iter(source.train)
    batch = next(stream)
    stream.close()
    assert batch["frames"].shape == (2, 20, 40, 40, 3)
    assert batch["label"].tolist() == [0, 0]


def test_labels_where_there_is_one(data_dir):
    source = data.load(config_of(data_dir, labels=True, split="localize"), seed=0)
    assert len(source.classes) == 36
    stream = iter(source.train)
    assert sorted(next(stream)["label"].tolist()) == [0, 35]
    stream.close()
    with pytest.raises(ValueError, match=r"CATER_new_005748 has 3 labels .*labels=False"):
        data.load(config_of(data_dir, labels=True), seed=0)
    with pytest.raises(ValueError, match=r"no split 'x' .*it has actions_present, localize"):
        data.load(config_of(data_dir, split="x"), seed=0)


def test_lists_without_labels(tmp_path):
    downloads.write_zip(tmp_path / "d" / "videos.zip", downloads.cater_videos())
    lists = {"lists/frames/train.txt": "CATER_new_005748.avi\nCATER_new_000001.avi\n",
             "lists/frames/val.txt": "CATER_new_000012.avi\n"}  # fmt: skip
    downloads.write(tmp_path / "d", lists)
    build(tmp_path / "d", tmp_path / "data", subset="max2action_cameramotion")
    config = config_of(str(tmp_path / "data"), split="frames")
    assert data.load(config, seed=0).num_train == 2
    config.labels = True
    with pytest.raises(ValueError, match="has no label in frames of cater"):
        data.load(config, seed=0)


def test_the_folder_of_another_set(tmp_path):
    folder = downloads.cater(tmp_path / "downloads", "max2action")
    with pytest.raises(FileNotFoundError, match="no folder all_actions, but max2action; choose"):
        build(folder, tmp_path / "data")
    with pytest.raises(ValueError, match="subset is 'all'; it must be one of all_actions, "):
        build(folder, tmp_path / "data", subset="all")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("localize/train.txt", "CATER_new_000001.avi 36\n", "the class 36; localize has 36"),
        ("localize/train.txt", "CATER_new_000001.avi x\n", "line 1: 'x' should be a whole number"),
        ("localize/train.txt", "video.avi 3\n", "'video.avi' should be CATER_new_NNNNNN.avi"),
        ("localize/train.txt", "CATER_new_000012.avi 3\n", "1 videos both for training and"),
        ("localize/train.txt", "CATER_new_000001.avi 3,3\n", "has a class twice"),
        ("localize/val.txt", None, "localize val is missing"),
    ],
)
def test_wrong_lists(tmp_path, name, text, said):
    lists = dict(downloads.CATER_LISTS)
    lists[f"lists/{name}"] = text
    downloads.write(tmp_path / "d", {k: v for k, v in lists.items() if v is not None})
    with pytest.raises(listing.ListError, match=said):
        build(tmp_path / "d", tmp_path / "data")
