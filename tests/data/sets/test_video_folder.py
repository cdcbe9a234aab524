import shutil

import numpy as np
import pytest

import data
from data.sets import video_folder
from data.video import boxes, decoding, files
from tests.data import videos


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Videos of 20 to 23 frames, to be copied."""
    folder = tmp_path_factory.mktemp("originals")
    return [videos.write_video(folder / f"{n}.avi", n, b_frames=2) for n in range(20, 24)]


@pytest.fixture
def fill(tmp_path, originals):
    """Puts videos into the folder and returns its configuration."""

    def fill(*names):
        for number, name in enumerate(names):
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(originals[number % 4], path)
        config = data.default_config("video_folder")
        config.path = str(tmp_path / "videos")
        config.cache_dir = str(tmp_path / "cache")
        config.num_frames, config.resize, config.size, config.batch_size = 8, 0, 48, 2
        return config

    return fill


def count_tested(source):
    """How many frames of each test video come, by its number."""
    seen = {}
    for batch in source.test():
        for frames, mask, video in zip(batch["frames"], batch["mask"], batch["video"], strict=True):
            if mask.any():
                seen[int(video)] = seen.get(int(video), 0) + len(frames[mask])
    return seen


def test_already_split(fill, tmp_path):
    config = fill(
        *["train/a/1.avi", "train/a/2.AVI", "train/b/3.avi"], *["test/a/1.avi", "test/b/x.Avi"]
    )
    (tmp_path / "videos" / "train" / "a" / "notes.txt").write_text("not a video")
    (tmp_path / "videos" / "train" / "a" / "._1.avi").write_text("what macOS leaves behind")
    (tmp_path / "videos" / "train" / ".hidden").mkdir()
    source = data.load(config, seed=0)
    assert source.classes == ("a", "b")
    assert (source.num_train, source.num_test) == (3, 2)
    assert source.steps_per_epoch == 2
    assert source.skipped == ()
    assert count_tested(source) == {0: 23, 1: 20}


def test_training_batches(fill):
    config = fill("a/1.avi", "a/2.avi", "b/3.avi", "b/4.avi")
    config.resize, config.size, config.num_frames = 36, 32, 4
    source = data.load(config, seed=0)
    stream = iter(source.train)
    batch = next(stream)
    stream.close()
    assert batch["frames"].shape == (2, 4, 32, 32, 3)
    assert batch["frames"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["frames"].std() > 50


def test_clips_are_the_frames_of_the_files(fill):
    """Through the whole pipeline, the numbers in the pixels are consecutive."""
    config = fill("a/1.avi", "b/2.avi")
    config.flip, config.test_fraction = False, 0.0
    folder = files.FileVideos(
        config.path, [files.Video(f"{config.path}/a/1.avi", 0, 5, 17, 48, 64)], 0
    )
    whole = boxes.Box(0, 0, 48, 64)
    rng = np.random.default_rng(0)
    assert videos.numbers_of(folder.read(0, np.array([0, 3, 11]), whole, rng)) == [5, 8, 16]
    assert videos.numbers_of(np.stack(list(folder.stream(0, whole)))) == list(range(5, 17))


def test_videos_of_every_extension_are_taken(fill):
    """Their content decides how they are read: all of these are AVIs."""
    names = [f"a/{n}{ending}" for n, ending in enumerate(decoding.EXTENSIONS)]
    config = fill(*names, "a/x.MPG", "b/1.avi", "b/2.WmV")
    source = data.load(config, seed=0)
    assert source.num_train + source.num_test == len(names) + 3
    for ending in [".m4v", ".mpg", ".ts", ".wmv", ".flv", ".3gp", ".gif", ".ogv"]:
        assert ending in decoding.EXTENSIONS


def test_what_is_left_alone_is_counted(fill, tmp_path, caplog):
    config = fill("a/1.avi", "a/2.avi", "b/3.avi", "b/deep/4.avi", "loose.mp4")
    for name in ("a/1.txt", "a/2.TXT", "b/x.rmvb", "notes.txt", "a/.hidden"):
        (tmp_path / "videos" / name).write_text("")
    data.load(config, seed=0)
    assert (
        f"Left alone in {config.path}: 3 files that are no videos by their names (2 .txt, .rmvb); "
        f"1 videos that are in no class folder (loose.mp4); 1 folders inside class folders (b/deep)"
    ) in caplog.text


def test_what_is_left_alone_beside_a_split(fill, tmp_path, caplog):
    config = fill("train/a/1.avi", "test/a/2.avi", "train/3.avi")
    (tmp_path / "videos" / "test" / "a" / "x.jpg").write_text("")
    data.load(config, seed=0)
    assert "1 files that are no videos by their names (.jpg); 1 videos that" in caplog.text


def test_nothing_is_said_where_nothing_is_left_alone(fill, caplog):
    data.load(fill("a/1.avi", "a/2.avi"), seed=0)
    assert "Left alone" not in caplog.text


def split_of(config, seed=0):
    """Which files are for training and for testing."""
    parts = data.load(config, seed=seed).videos.values()
    return [{(one.path, one.start, one.stop) for one in part._videos} for part in parts]


def test_split(fill):
    names = [f"a/{n}.avi" for n in range(10)] + [f"b/{n}.avi" for n in range(3)]
    config = fill(*names)
    train, test = split_of(config)
    assert not train & test
    assert {path for path, _, _ in train | test} == {f"{config.path}/{name}" for name in names}
    assert sum("/a/" in path for path, _, _ in test) == 2
    assert sum("/b/" in path for path, _, _ in test) == 1
    # Names decide, not the seed and not what else there is.
    assert split_of(config, seed=1) == [train, test]
    fill(*names, "c/1.avi", "c/2.avi")
    train_with_c, test_with_c = split_of(config)
    assert train <= train_with_c
    assert test <= test_with_c


@pytest.mark.parametrize(
    ("test_fraction", "num_test"), [(0.0, 0), (0.01, 1), (0.5, 2), (0.9, 3), (0.99, 3)]
)
def test_every_class_keeps_a_training_video(fill, test_fraction, num_test):
    config = fill(*[f"a/{n}.avi" for n in range(4)])
    config.test_fraction = test_fraction
    source = data.load(config, seed=0)
    assert (source.num_train, source.num_test) == (4 - num_test, num_test)


def test_a_class_with_one_video_is_cut_in_time(fill, caplog):
    config = fill("a/1.avi", "b/2.avi", "b/3.avi")  # 20, 21 and 22 frames
    train, test = split_of(config)
    assert (f"{config.path}/a/1.avi", 0, 16) in train
    assert (f"{config.path}/a/1.avi", 16, 20) in test
    assert "One video only in a: " in caplog.text
    assert "the accuracy says little" in caplog.text
    source = data.load(config, seed=0)
    assert (source.num_train, source.num_test) == (2, 2)
    assert count_tested(source)[0] == 4


def test_one_video_and_no_test_fraction(fill):
    config = fill("a/1.avi")
    config.test_fraction = 0.0
    source = data.load(config, seed=0)
    assert (source.num_train, source.num_test) == (1, 0)
    assert list(source.test()) == []


def test_a_single_frame_cannot_be_cut(fill, tmp_path):
    config = fill("a/1.avi", "b/2.avi")
    videos.write_video(tmp_path / "videos" / "a" / "1.avi", 1)
    source = data.load(config, seed=0)
    assert (source.num_train, source.num_test) == (2, 1)


# Bad files and folders.


def test_bad_files_are_named_counted_and_skipped(fill, tmp_path, caplog):
    config = fill("a/1.avi", "a/2.avi", "a/3.avi", "b/1.avi", "b/2.avi", "b/3.avi")
    bad = {"a/2.avi": "text", "b/3.avi": ""}
    for name, content in bad.items():
        (tmp_path / "videos" / name).write_text(content)
    config.max_bad_fraction = 0.34
    source = data.load(config, seed=0)
    assert source.num_train + source.num_test == 4
    assert [path for path, _ in source.skipped] == [f"{config.path}/{name}" for name in bad]
    assert source.skipped[1][1] == "the file is empty"
    assert "2 of 6 videos are bad and are skipped" in caplog.text
    for path, reason in source.skipped:
        assert f"{path}: {reason}" in caplog.text
    config.max_bad_fraction = 0.33
    with pytest.raises(ValueError, match=r"2 of 6 videos are bad, more than .* 0\.33") as error:
        data.load(config, seed=0)
    for path, reason in source.skipped:
        assert f"{path}: {reason}" in str(error.value)


def test_a_loop_of_links_is_one_bad_file(fill, tmp_path):
    config = fill("a/1.avi", "a/2.avi", "b/3.avi", "b/4.avi")
    (tmp_path / "videos" / "a" / "loop.avi").symlink_to("loop.avi")
    (tmp_path / "videos" / "a" / "other").symlink_to("other")
    (tmp_path / "videos" / "loop").symlink_to("loop")
    source = data.load(config, seed=0)
    assert source.num_train + source.num_test == 4
    [(path, reason)] = source.skipped
    assert path == f"{config.path}/a/loop.avi"
    assert reason == "cannot be read: Too many levels of symbolic links"


def test_exactly_the_allowed_fraction(fill, tmp_path):
    config = fill("a/1.avi", "a/2.avi", "b/1.avi", "b/2.avi")
    (tmp_path / "videos" / "a" / "2.avi").write_text("text")
    config.max_bad_fraction = 0.25
    assert len(data.load(config, seed=0).skipped) == 1


def test_a_class_with_bad_videos_only(fill, tmp_path):
    config = fill("a/1.avi", "a/2.avi", "b/1.avi")
    (tmp_path / "videos" / "b" / "1.avi").write_text("text")
    config.max_bad_fraction = 1.0
    with pytest.raises(ValueError, match=r"every video of the class .*/b is bad: .*1\.avi"):
        data.load(config, seed=0)


def test_a_file_that_changes_after_the_check(fill, tmp_path):
    config = fill("a/1.avi", "b/2.avi")
    config.test_fraction = 0.0
    source = data.load(config, seed=0)
    for name in ("a/1.avi", "b/2.avi"):
        (tmp_path / "videos" / name).write_text("text")
    stream = iter(source.train)
    with pytest.raises(video_folder.decoding.BadVideo, match="Invalid data"):
        next(stream)
    stream.close()


def test_no_folder(fill, tmp_path):
    config = fill()
    with pytest.raises(FileNotFoundError, match="videos does not exist"):
        data.load(config, seed=0)
    (tmp_path / "videos").write_text("")
    with pytest.raises(FileNotFoundError, match="videos is not a folder"):
        data.load(config, seed=0)
    config.path = ""
    with pytest.raises(ValueError, match=r"--config\.data\.path=DIR"):
        data.load(config, seed=0)


def test_no_classes(fill, tmp_path):
    config = fill()
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match=r"no folders of videos \(nothing to use"):
        data.load(config, seed=0)
    fill("1.avi", "2.mp4")
    with pytest.raises(ValueError, match="2 videos, but not in class folders"):
        data.load(config, seed=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("batch_size", 0, "batch_size is 0; it must be at least 1"),
        ("stride", 0, "stride is 0; it must be at least 1"),
        ("num_workers", -1, "num_workers is -1; it must be 0 or more"),
    ],
)
def test_options_are_checked_before_a_file_is_decoded(fill, monkeypatch, field, value, said):
    config = fill("a/1.avi", "b/2.avi")
    config[field] = value
    monkeypatch.setattr(video_folder.scan, "scan", None)
    with pytest.raises(ValueError, match=said):
        data.load(config, seed=0)


def test_a_class_without_videos(fill, tmp_path):
    config = fill("a/1.avi")
    empty = tmp_path / "videos" / "b"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"the class .*/b has no videos .*; it has nothing in it"):
        data.load(config, seed=0)
    (empty / "1.jpg").write_text("")
    (empty / "frames").mkdir()
    with pytest.raises(ValueError, match=r"it has 1 other files \(.jpg\) and 1 folders"):
        data.load(config, seed=0)


def test_half_a_split(fill):
    config = fill("train/a/1.avi", "train/b/2.avi")
    with pytest.raises(ValueError, match="has train/CLASS but no test/CLASS"):
        data.load(config, seed=0)


def test_a_test_class_that_is_not_trained(fill):
    config = fill("train/a/1.avi", "test/a/2.avi", "test/b/3.avi")
    with pytest.raises(ValueError, match="test has classes that train has not: b"):
        data.load(config, seed=0)


def test_other_folders_beside_a_split_are_said_to_be_unused(fill, caplog):
    config = fill("train/a/1.avi", "test/a/2.avi", "validate/a/3.avi")
    data.load(config, seed=0)
    assert "not validate" in caplog.text


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_train_and_validation_folders(fill, name):
    config = fill("train/a/1.avi", "train/b/2.avi", f"{name}/a/3.avi", f"{name}/b/4.avi")
    source = data.load(config, seed=0)
    assert source.classes == ("a", "b")
    assert (source.num_train, source.num_test) == (2, 2)
    assert count_tested(source) == {0: 22, 1: 23}
    fill("train/c/5.avi", f"{name}/d/6.avi")
    with pytest.raises(ValueError, match=f"{name} has classes that train has not: d"):
        data.load(config, seed=0)


def test_a_test_folder_goes_before_a_validation_folder(fill, caplog):
    config = fill("train/a/1.avi", "train/a/2.avi", "val/a/3.avi", "test/a/4.avi")
    assert count_tested(data.load(config, seed=0)) == {0: 23}
    assert "not val" in caplog.text


def test_train_may_be_the_name_of_a_class(fill):
    config = fill("train/1.avi", "plane/1.avi")
    assert data.load(config, seed=0).classes == ("plane", "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"max_bad_fraction": -0.1}, "max_bad_fraction is -0.1"),
        ({"resize": -1}, "resize is -1"),
        ({"resize": 40}, "size is 48, but the shorter side .* 40 pixels; resize to 48 or more"),
        ({"size": 50}, "a crop of 50x50 pixels does not fit into a frame of 48x64"),
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"stride": 0}, "stride is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_out_of_range(fill, changes, message):
    config = fill("a/1.avi", "b/2.avi")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        data.load(config, seed=0)


def test_more_clips_in_a_batch_than_videos(fill):
    """A batch runs across the ends of epochs, so a tiny folder still trains."""
    config = fill("a/1.avi", "b/2.avi")
    config.batch_size, config.size = 7, 32
    source = data.load(config, seed=0)
    assert source.steps_per_epoch == 1
    stream = iter(source.train)
    labels = next(stream)["label"].tolist()
    stream.close()
    assert labels.count(0) in (3, 4)
