import numpy as np
import pytest

import data
from data.building import builder, listing, stored
from data.building.hmdb51 import hmdb51_dataset_builder
from data.sets import recorded
from data.video import boxes
from experiments.examples import stored_rar
from tests.data import downloads, videos


def build(folder, data_dir, **config):
    return builder.build(
        hmdb51_dataset_builder.Builder,
        folder,
        data_dir,
        **{"name": "test", "resize": 0, "num_processes": 1, **config},
    )


def as_downloaded(folder):
    """An archive of archives, and an archive of lists."""
    inner = {}
    for name, files in downloads.hmdb51_videos().items():
        stored_rar.write(folder / "inner.rar", files)
        inner[f"{name}.rar"] = (folder / "inner.rar").read_bytes()
    (folder / "inner.rar").unlink()
    stored_rar.write(folder / "hmdb51_org.rar", inner)
    lists = {name: text.encode() for name, text in downloads.hmdb51_lists().items()}
    stored_rar.write(folder / "test_train_splits.rar", lists)


def unpacked_once(folder):
    """A folder of archives."""
    for name, files in downloads.hmdb51_videos().items():
        (folder / "hmdb51_org").mkdir(exist_ok=True)
        stored_rar.write(folder / "hmdb51_org" / f"{name}.rar", files)
    downloads.write(folder, downloads.hmdb51_lists())


@pytest.mark.parametrize("prepare", [as_downloaded, unpacked_once, downloads.hmdb51])
def test_splits_labels_and_frames(tmp_path, prepare):
    folder = tmp_path / "downloads"
    folder.mkdir()
    prepare(folder)
    info = build(folder, tmp_path / "data").info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 3,
        "test": 2,
        "rest": 2,
    }
    made = stored.read_build("hmdb51", str(tmp_path / "data"), "test")
    assert made.excluded == made.unlisted == ()
    for split in ("1", "2"):
        assert made.splits[split]["classes"] == ["brush_hair", "wave"]
        for part, tag in (("train", "1"), ("test", "2")):
            numbers, labels = zip(*made.splits[split][part], strict=True)
            chosen = recorded.RecordVideos(made, numbers, [label for [label] in labels])
            expected = {key: value[0] for key, value in downloads.HMDB51.items()
                        if value[int(split)] == tag}  # fmt: skip
            assert chosen.names == list(expected)
            assert chosen.labels == [int(key.startswith("wave")) for key in expected]
            for index, num_frames in enumerate(expected.values()):
                box = boxes.Box(0, 0, videos.HEIGHT, videos.WIDTH)
                frames = np.stack(list(chosen.stream(index, box)))
                assert videos.numbers_of(frames) == list(range(num_frames))
                read = chosen.read(index, np.array([7, 3, 7, 19]), box, np.random.default_rng(0))
                assert videos.numbers_of(read) == [7, 3, 7, 19]


def test_whole_videos_are_tested(tmp_path):
    build(downloads.hmdb51(tmp_path / "downloads"), tmp_path / "data")
    config = data.default_config("hmdb51")
    config.path, config.variant = str(tmp_path / "data"), "test"
    config.num_frames, config.size, config.batch_size = 8, 48, 2
    source = data.load(config, seed=0)
    assert (source.num_train, source.num_test) == (3, 2)
    assert sum(batch["mask"].sum() for batch in source.test()) == 22 + 24


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace("avi 1", "avi 3"), "line 1: .* with the tag 0, 1 or 2"),
        (lambda text: text.replace(".avi 1", ".mp4 1"), r"should be 'NAME.avi TAG'"),
        (lambda text: text.replace("avi 1", "avi"), "should be 'NAME.avi TAG'"),
        (lambda text: text + text, "brush_hair/April_09.* is listed twice"),
        (lambda text: "\n", "brush_hair_test_split1.txt is empty"),
    ],
)
def test_wrong_lists(tmp_path, edit, said):
    folder = downloads.hmdb51(tmp_path / "downloads")
    path = folder / "testTrainMulti_7030_splits" / "brush_hair_test_split1.txt"
    path.write_text(edit(path.read_text()))
    with pytest.raises(listing.ListError, match=said):
        build(folder, tmp_path / "data")


def test_a_missing_list(tmp_path):
    folder = downloads.hmdb51(tmp_path / "downloads")
    (folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt").unlink()
    with pytest.raises(listing.ListError, match=r"wave_test_split2.txt is missing; the lists are"):
        build(folder, tmp_path / "data")


def test_the_same_name_in_the_wrong_class_is_missing(tmp_path):
    folder = downloads.hmdb51(tmp_path / "downloads")
    name = "the_same_name;_h_nm_np1_ba_goo_2.avi"
    (folder / "hmdb51_org" / "wave" / name).unlink()
    with pytest.raises(builder.BadVideosError, match=r"wave/the_same_name;_h.*: missing"):
        build(folder, tmp_path / "data")
