"""What can go wrong in a build: nothing wrong is stored, and nothing goes missing unsaid."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import data
from data.building import archives, builder, ingest, stored
from data.building.ucf101 import ucf101_dataset_builder
from data.sets import recorded
from data.video import boxes
from tests.data import downloads, videos

ROOT = pathlib.Path(__file__).parents[3]


def build(folder, data_dir, **config):
    return builder.build(
        ucf101_dataset_builder.Builder,
        folder,
        data_dir,
        **{"name": "test", "resize": 0, "num_processes": 1, **config},
    )


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return videos.write_noise(tmp_path_factory.mktemp("noise") / "noise.avi", 30).read_bytes()


def zeroed(content):
    middle = len(content) // 2
    return content[:middle] + bytes(len(content) // 5) + content[middle + len(content) // 5 :]


DAMAGE = {
    "missing": (lambda content: None, "missing"),
    "empty": (lambda content: b"", "the file is empty"),
    "text": (lambda content: b"404 not found\n" * 50, "cannot be decoded"),
    "truncated": (lambda content: content[: len(content) // 2], "(cannot be decoded|ends) after"),
    "zeroed": (zeroed, "(cannot be decoded|frame .* is damaged|ends after)"),
}


def damaged(folder, noise, *kinds):
    """UCF101 with noise for videos, one of them damaged for each of `kinds`; their keys."""
    downloads.ucf101(folder)
    keys = []
    for name, kind in zip(downloads.UCF101, [*kinds, *[None] * 6], strict=False):
        content = noise if kind is None else DAMAGE[kind][0](noise)
        path = folder / "UCF-101" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        if kind:
            keys.append(path.stem.lower())
    return keys


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_an_error(tmp_path, noise, kind):
    [key] = damaged(tmp_path / "d", noise, kind)
    with pytest.raises(builder.BadVideosError) as error:
        build(tmp_path / "d", tmp_path / "data")
    message = str(error.value)
    assert "1 of 6 listed videos are missing or damaged" in message
    assert re.search(DAMAGE[kind][1], message)
    assert f"  {key}: " in message
    assert '--config=\'{"name": "test_excluding", "exclude_bad": true, "resize": 0}\'' in message
    assert not list((tmp_path / "data" / "ucf101" / "test").glob("[!.]*"))
    with pytest.raises(FileNotFoundError, match="ucf101 has not been built in"):
        stored.read_build("ucf101", str(tmp_path / "data"), "test")


def test_all_bad_files_are_named_at_once(tmp_path, noise):
    """In training and test videos alike."""
    keys = damaged(tmp_path / "d", noise, "empty", "text", "truncated", "zeroed")
    with pytest.raises(builder.BadVideosError) as error:
        build(tmp_path / "d", tmp_path / "data")
    assert "4 of 6 listed" in str(error.value)
    for key in keys:
        assert f"  {key}: " in str(error.value)


def test_all_missing_files_are_named_at_once(tmp_path, noise):
    keys = damaged(tmp_path / "d", noise, "missing", "missing", "missing")
    with pytest.raises(builder.BadVideosError) as error:
        build(tmp_path / "d", tmp_path / "data")
    assert all(f"  {key}: missing" in str(error.value) for key in keys)


def test_exclusion_is_recorded(tmp_path, noise, caplog):
    keys = damaged(tmp_path / "d", noise, "missing", "zeroed", "text")
    info = build(tmp_path / "d", tmp_path / "data", exclude_bad=True).info
    assert sum(split.num_examples for split in info.splits.values()) == 3
    assert "3 of 6 listed videos are missing or damaged" in caplog.text
    made = stored.read_build("ucf101", str(tmp_path / "data"), "test")
    assert [key for key, _ in made.excluded] == sorted(keys)
    assert dict(made.excluded)[keys[0]] == "missing"
    kept = {entry.key for entry in made.videos}
    assert not kept & set(keys)
    for split in made.splits.values():
        assert {made.videos[n].key for part in ("train", "test") for n, _ in split[part]} == kept
    config = data.default_config("ucf101")
    config.path, config.variant = str(tmp_path / "data"), "test"
    config.num_frames, config.size = 4, 48
    assert data.load(config, seed=0).skipped == made.excluded


def test_nothing_left_after_exclusion(tmp_path, noise):
    damaged(tmp_path / "d", noise, *["empty"] * 6)
    with pytest.raises(builder.BadVideosError, match="no video of train can be used: 3 of 6"):
        build(tmp_path / "d", tmp_path / "data", exclude_bad=True)


def test_a_damaged_member_of_an_archive(tmp_path):
    files = {f"UCF-101/{name}": downloads.contents("mpeg4.avi", n)
             for name, n in downloads.UCF101.items()}  # fmt: skip
    packed = downloads.write_zip(tmp_path / "d" / "x.zip", files)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    packed.write_bytes(content)
    downloads.write(tmp_path / "d", downloads.ucf101_lists())
    with pytest.raises(builder.BadVideosError, match=r"1 of 6 .*\n.*: cannot be unpacked: "):
        build(tmp_path / "d", tmp_path / "data")


def test_videos_in_no_list_are_said(tmp_path, caplog):
    folder = downloads.ucf101(tmp_path / "d")
    downloads.write(folder, {"UCF-101/YoYo/v_YoYo_g09_c01.avi": b"never opened"})
    build(folder, tmp_path / "data")
    assert "1 videos are in no list and are left out: v_yoyo_g09_c01" in caplog.text
    assert "not the published lists of ucf101: videos: 6, not 13320" in caplog.text
    made = stored.read_build("ucf101", str(tmp_path / "data"), "test")
    assert made.unlisted == ("v_yoyo_g09_c01",)


def test_processes_give_the_same(tmp_path):
    """In order, though the first video takes the longest."""
    files = {}
    for number in range(1, 26):
        path = f"a/v_a_g{number:02}_c01.avi"
        files[path] = downloads.contents("mpeg4.avi", 41 - (number % 25))
    members = [
        archives.Member(name, "", str(downloads.write(tmp_path, {name: content}) / name))
        for name, content in files.items()
    ]
    alone = list(ingest.encode_all(members, 24, 90, 1))
    together = list(ingest.encode_all(members, 24, 90, 2))
    assert [len(one.jpegs) for one in alone] == [41 - (n % 25) for n in range(1, 26)]
    assert together == alone


def test_a_build_that_is_there_stays(tmp_path):
    folder = downloads.ucf101(tmp_path / "d")
    build(folder, tmp_path / "data")
    shutil.rmtree(folder)
    folder.mkdir()
    assert build(folder, tmp_path / "data").info.splits["train"].num_examples == 3


def test_a_disk_without_space(tmp_path, monkeypatch):
    folder = downloads.ucf101(tmp_path / "d")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(OSError, match="no space left for the data set: 0 MiB are free"):
        build(folder, tmp_path / "data")
    assert not list((tmp_path / "data" / "ucf101" / "test").glob("[!.]*"))


SCRIPT = """
import resource, sys
from data.building import builder
from data.building.ucf101 import ucf101_dataset_builder
if sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
builder.build(ucf101_dataset_builder.Builder, sys.argv[1], sys.argv[2], name="test", resize=256,
              num_processes=1)
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def test_a_write_that_fails(tmp_path):
    """The kernel refuses to write more than so many bytes to a file, as a full disk would."""
    process = start(downloads.ucf101(tmp_path / "d"), tmp_path / "data", 100_000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OSError: [Errno 5] the data set could not be written: " in errors
    assert not list((tmp_path / "data" / "ucf101" / "test").glob("[!.]*"))


def test_a_killed_build_and_its_restart(tmp_path, caplog):
    folder = tmp_path / "d"
    names = [f"YoYo/v_YoYo_g{number:02}_c01.avi" for number in range(1, 100)]
    content = downloads.contents("mpeg4.avi", 40)
    downloads.write(folder, {f"UCF-101/{name}": content for name in names})
    downloads.write(folder, downloads.ucf101_lists(names, ("YoYo",)))
    parent = tmp_path / "data" / "ucf101" / "test"
    process = start(folder, tmp_path / "data")
    try:
        deadline = time.monotonic() + 60
        while not list(parent.glob("incomplete.*/scratch")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(ValueError, match="another process is building"):
            build(folder, tmp_path / "data")
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
    assert list(parent.glob("incomplete.*"))
    with pytest.raises(FileNotFoundError, match="ucf101 has not been built in"):
        stored.read_build("ucf101", str(tmp_path / "data"), "test")
    build(folder, tmp_path / "data")
    assert "Removing what a build that was killed left" in caplog.text
    assert [path.name for path in parent.glob("[!.]*")] == ["1.0.0"]
    made = stored.read_build("ucf101", str(tmp_path / "data"), "test")
    one = recorded.RecordVideos(made, range(99), None)
    frames = one.read(98, np.arange(40), boxes.Box(0, 0, 48, 64), np.random.default_rng(0))
    assert videos.numbers_of(frames) == list(range(40))


def test_the_files_of_tfds(tmp_path):
    """What makes a folder a data set of TFDS."""
    built = build(downloads.ucf101(tmp_path / "d"), tmp_path / "data")
    folder = pathlib.Path(built.data_dir)
    assert folder == tmp_path / "data" / "ucf101" / "test" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    assert {path.name for path in folder.glob("*record*")} == {
        "ucf101-train.array_record-00000-of-00001",
        "ucf101-test.array_record-00000-of-00001",
    }
    assert not (folder / "scratch").exists()


def test_what_was_written_is_opened_again(tmp_path, monkeypatch):
    """A file that lost its end, unnoticed by the writer."""
    write = builder.shards.write

    def lossy(records, path, *rest):
        written = write(records, path, *rest)
        for number in range(len(written.lengths)):
            file = pathlib.Path(path(number, len(written.lengths)))
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return written

    monkeypatch.setattr(builder.shards, "write", lossy)
    with pytest.raises(OSError, match="what was written for train cannot be read"):
        build(downloads.ucf101(tmp_path / "d"), tmp_path / "data")
    assert not list((tmp_path / "data" / "ucf101" / "test").glob("[!.]*"))
