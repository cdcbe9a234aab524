import json
import os

import pytest

from data.video import decoding, scan
from tests.data import videos


@pytest.fixture
def folder(tmp_path):
    videos.write_video(tmp_path / "videos" / "good.avi", 20)
    (tmp_path / "videos" / "bad.avi").write_text("text")
    return tmp_path


@pytest.fixture
def probed(monkeypatch):
    """The files that were decoded; decoding itself is the real one."""
    files = []

    def probe(path):
        files.append(os.path.basename(path))
        return original(path)

    original = decoding.probe
    monkeypatch.setattr(decoding, "probe", probe)
    return files


def scanned(folder, files=("good.avi", "bad.avi"), cache="cache"):
    return scan.scan(str(folder / "videos"), files, str(folder / cache))


def check(found):
    assert list(found) == ["good.avi", "bad.avi"]
    assert found["good.avi"] == decoding.VideoInfo(20, videos.HEIGHT, videos.WIDTH)
    assert isinstance(found["bad.avi"], decoding.BadVideo)
    assert "Invalid data" in found["bad.avi"].reason
    assert found["bad.avi"].path.endswith("/videos/bad.avi")


def test_every_file_is_decoded_once(folder, probed):
    check(scanned(folder))
    assert sorted(probed) == ["bad.avi", "good.avi"]
    check(scanned(folder))
    assert len(probed) == 2


def test_a_changed_file_is_decoded_again(folder, probed):
    scanned(folder)
    good = folder / "videos" / "good.avi"
    videos.write_video(good, 21)
    assert scanned(folder)["good.avi"].num_frames == 21
    os.utime(good, ns=(0, 0))
    scanned(folder)
    assert probed.count("good.avi") == 3
    assert probed.count("bad.avi") == 1


def test_a_new_file_is_decoded_and_a_removed_one_forgotten(folder, probed):
    scanned(folder)
    videos.write_video(folder / "videos" / "new.avi", 5)
    found = scanned(folder, ["good.avi", "new.avi"])
    assert found["new.avi"].num_frames == 5
    assert sorted(probed) == ["bad.avi", "good.avi", "new.avi"]
    [index] = (folder / "cache").iterdir()
    assert sorted(json.loads(index.read_text())["files"]) == ["good.avi", "new.avi"]


def test_folders_do_not_share_an_index(folder):
    scanned(folder)
    videos.write_video(folder / "other" / "good.avi", 7)
    found = scan.scan(str(folder / "other"), ["good.avi"], str(folder / "cache"))
    assert found["good.avi"].num_frames == 7
    assert len(list((folder / "cache").iterdir())) == 2


def test_the_index_goes_to_the_users_cache(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    scan.scan(str(folder / "videos"), ["good.avi"])
    assert len(list((folder / "xdg" / "sideways_jax").iterdir())) == 1
    assert sorted(os.listdir(folder / "videos")) == ["bad.avi", "good.avi"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', "null"])
def test_an_index_that_cannot_be_used_is_made_anew(folder, probed, content):
    scanned(folder)
    [index] = (folder / "cache").iterdir()
    index.write_text(content)
    check(scanned(folder))
    assert len(probed) == 4
    check(scanned(folder))
    assert len(probed) == 4


def test_an_index_of_another_version_is_not_believed(folder, probed, monkeypatch):
    scanned(folder)
    monkeypatch.setattr(scan, "_VERSION", -1)
    scanned(folder)
    assert len(probed) == 4


def test_no_place_for_the_index(folder, caplog):
    (folder / "cache").write_text("a file where the folder would be")
    check(scanned(folder, cache="cache/below"))
    assert "will be checked again" in caplog.text
    assert "config.data.cache_dir" in caplog.text


def test_what_could_not_be_opened_is_not_remembered(folder):
    found = scanned(folder, ["good.avi", "late.avi"])
    assert isinstance(found["late.avi"], decoding.UnreadableVideo)
    assert "No such file" in str(found["late.avi"])
    videos.write_video(folder / "videos" / "late.avi", 5)
    assert scanned(folder, ["good.avi", "late.avi"])["late.avi"].num_frames == 5


def test_an_interrupted_scan_goes_on(folder, probed, monkeypatch):
    class InterruptError(Exception):
        pass

    def probe_all(root, files):
        found = probe_all_originally(root, files)
        yield next(found)
        raise InterruptError

    probe_all_originally = scan._probe_all
    with monkeypatch.context() as patch:
        patch.setattr(scan, "_probe_all", probe_all)
        with pytest.raises(InterruptError):
            scanned(folder)
    [index] = (folder / "cache").iterdir()
    assert len(json.loads(index.read_text())["files"]) == 1
    probed.clear()
    check(scanned(folder))
    assert len(probed) == 1
