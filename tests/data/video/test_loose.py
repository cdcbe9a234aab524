"""Files in no data set: each gives all of its frames once, or a reason."""

import numpy as np
import pytest

import data
from tests.data import videos


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper" / ".hidden").mkdir(parents=True)
    videos.write_video(tmp_path / "b.mp4", 7, height=40, width=60)
    videos.write_video(tmp_path / "deeper" / "a.avi", 5, height=40, width=60)
    videos.write_video(tmp_path / "deeper" / ".hidden" / "c.mp4", 5)
    videos.write_video(tmp_path / "small.mp4", 5, height=16, width=60)
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "bad.mkv").write_text("no video")
    return tmp_path


def test_every_file_comes_once(folder, tmp_path):
    files = data.load_files(
        [folder, str(folder / "b.mp4"), folder / "notes.txt", "nowhere.mp4"],
        size=32, num_frames=4, batch_size=2, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert files.paths == (str(folder / "b.mp4"), str(folder / "deeper" / "a.avi"))
    reasons = dict(files.bad)
    assert set(reasons) == {
        *(str(folder / name) for name in ("bad.mkv", "notes.txt", "small.mp4")), "nowhere.mp4",
    }  # fmt: skip
    assert reasons["nowhere.mp4"] == "cannot be read: No such file or directory"
    assert reasons[str(folder / "small.mp4")].endswith("smaller than the crop of 32x32")
    counts = np.zeros(2, int)
    for batch in files.batches():
        assert batch["frames"].shape == (2, 4, 32, 32, 3)
        np.add.at(counts, batch["video"][batch["video"] >= 0],
                  batch["mask"].sum(axis=1)[batch["video"] >= 0])  # fmt: skip
    assert counts.tolist() == list(files.num_frames) == [7, 5]


def test_no_good_file_is_no_error(tmp_path):
    files = data.load_files([tmp_path], size=8, cache_dir=str(tmp_path))
    assert files.paths == ()
    [(path, reason)] = files.bad  # A mistaken folder would be met with silence otherwise.
    assert path == str(tmp_path)
    assert "no videos in this folder, at any depth; they are known by .avi, " in reason
