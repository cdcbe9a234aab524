import numpy as np
import pytest
import tensorflow_datasets as tfds

import data
from data.building import builder, listing, stored
from data.building.ucf101 import ucf101_dataset_builder
from data.sets import recorded
from data.video import boxes
from experiments.examples import stored_rar
from tests.data import downloads, videos

RESIZE = 36


def build(folder, data_dir, **config):
    return builder.build(
        ucf101_dataset_builder.Builder,
        folder,
        data_dir,
        **{"name": "test", "resize": RESIZE, "num_processes": 1, **config},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ucf101")
    return build(downloads.ucf101(folder / "downloads"), folder / "data"), folder / "data"


def frames_of(one, index):
    height, width = one.frame_size(index)
    frames = list(one.stream(index, boxes.Box(0, 0, height, width)))
    return videos.numbers_of(np.stack(frames))


@pytest.mark.parametrize(("split", "group"), [("1", "g01"), ("2", "g02")])
def test_splits_labels_and_frames(built, split, group):
    made = stored.read_build("ucf101", str(built[1]), "test")
    assert made.splits[split]["classes"] == list(downloads.UCF101_CLASSES)
    for part in ("train", "test"):
        numbers, labels = zip(*made.splits[split][part], strict=True)
        chosen = recorded.RecordVideos(made, numbers, [label for [label] in labels])
        expected = [name for name in downloads.UCF101 if (group in name) == (part == "test")]
        assert chosen.names == [name.partition("/")[2][:-4].lower() for name in expected]
        assert chosen.labels == [
            downloads.UCF101_CLASSES.index(name.partition("/")[0]) for name in expected
        ]
        for index, name in enumerate(expected):
            assert chosen.frame_size(index) == (36, 48)
            assert frames_of(chosen, index) == list(range(downloads.UCF101[name]))


def test_it_is_a_data_set_of_tfds(built):
    """Read with nothing of ours, from the folder alone."""
    info = tfds.builder_from_directory(str(built[0].data_dir)).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 3,
        "test": 3,
    }
    assert info.features["label"].names == list(downloads.UCF101_CLASSES)
    source = tfds.builder_from_directory(str(built[0].data_dir)).as_data_source("test")
    assert [example["label"] for example in source] == [0, 1, 2]
    assert source[1]["name"] == b"v_handstandpushups_g01_c01"
    assert len(source[1]["frames"]) == 22


def packed_rar(folder):
    files = {f"UCF-101/{name}": downloads.contents("mpeg4.avi", n)
             for name, n in downloads.UCF101.items()}  # fmt: skip
    stored_rar.write(folder / "UCF101.rar", files)


def packed_flat(folder):
    """THUMOS14: no folders of classes."""
    files = {f"UCF101/{name.partition('/')[2]}": downloads.contents("mpeg4.avi", n)
             for name, n in downloads.UCF101.items()}  # fmt: skip
    downloads.write_zip(folder / "UCF101_videos.zip", files)


@pytest.mark.parametrize("pack", [packed_rar, packed_flat])
def test_archives_give_the_same(tmp_path, built, pack):
    pack(tmp_path)
    downloads.write_zip(
        tmp_path / "UCF101TrainTestSplits-RecognitionTask.zip", downloads.ucf101_lists()
    )
    build(tmp_path, tmp_path / "data")
    one, other = (
        stored.read_build("ucf101", str(path), "test") for path in (built[1], tmp_path / "data")
    )
    assert one._replace(folder="") == other._replace(folder="")
    record = [recorded.RecordVideos(made, [4], None)._jpegs(0) for made in (one, other)]
    assert list(record[0]) == list(record[1])


def test_training_clips(built):
    config = data.default_config("ucf101")
    config.path, config.variant, config.split = str(built[1]), "test", "2"
    config.num_frames, config.size, config.batch_size, config.flip = 30, 36, 3, False
    source = data.load(config, seed=0)
    stream = iter(source.train)
    batch = next(stream)
    stream.close()
    assert batch["frames"].shape == (3, 30, 36, 36, 3)
    for clip, label in zip(batch["frames"], batch["label"], strict=True):
        # Torus padding; of the 4 columns of blocks only two are in every crop.
        length = [20, 22, 24][label]
        np.testing.assert_array_equal(clip[length:], clip[: 30 - length])
    assert sorted(batch["label"]) == [0, 1, 2]


def wrong(tmp_path, name, edit):
    folder = downloads.ucf101(tmp_path / "downloads")
    path = folder / "ucfTrainTestlist" / name
    path.write_text(edit(path.read_text()))
    return folder


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (
            "trainlist01.txt",
            lambda text: text + "Zumba/v_Zumba_g01_c01.avi 4\n",
            "line 4: the class of Zumba/v_Zumba_g01_c01.avi is not one of the 3 in classInd.txt",
        ),
        (
            "trainlist01.txt",
            lambda text: text.replace(".avi 2", ".avi 3"),
            "has the class 3, but classInd.txt gives HandstandPushups the number 2",
        ),
        ("trainlist01.txt", lambda text: text * 2, "v_applylipstick_g02_c01 is listed twice"),
        ("testlist01.txt", lambda text: "", "split 1 has no test videos"),
        (
            "testlist01.txt",
            lambda text: text.replace("g01", "g02"),
            "split 1 has 3 videos both for training and for testing: v_applylipstick_g02_c01, ",
        ),
        ("testlist02.txt", lambda text: "1 2 3\n", r"line 1: '1' should be CLASS/v_CLASS_g"),
        ("testlist02.txt", lambda text: "YoYo/v_Zumba_g01_c01.avi", "the class of YoYo/v_Zumba"),
        ("classInd.txt", lambda text: text.replace("2 ", "3 "), "should be '2 CLASS'"),
        ("classInd.txt", lambda text: "\x00\x01", "line 1: .* should be a whole number"),
    ],
)
def test_wrong_lists(tmp_path, name, edit, said):
    with pytest.raises(listing.ListError, match=said):
        build(wrong(tmp_path, name, edit), tmp_path / "data")
    assert not list((tmp_path / "data" / "ucf101" / "test").glob("[!.]*"))


@pytest.mark.parametrize("name", ["classInd.txt", "trainlist01.txt", "testlist02.txt"])
def test_a_missing_list(tmp_path, name):
    folder = downloads.ucf101(tmp_path / "downloads")
    (folder / "ucfTrainTestlist" / name).unlink()
    with pytest.raises(listing.ListError, match=f"{name} is missing; it is in UCF101TrainTest"):
        build(folder, tmp_path / "data")


def test_a_video_that_is_there_twice(tmp_path):
    folder = downloads.ucf101(tmp_path / "downloads")
    downloads.write(folder, {"again/v_YoYo_g01_c01.avi": b"x"})
    with pytest.raises(listing.ListError, match="v_yoyo_g01_c01 is there twice, UCF-101/YoYo/"):
        build(folder, tmp_path / "data")


def test_a_folder_beside_its_archive(tmp_path):
    folder = downloads.ucf101(tmp_path / "downloads")
    packed_rar(folder)
    assert build(folder, tmp_path / "data").info.splits["train"].num_examples == 3
