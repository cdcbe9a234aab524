import contextlib
import itertools
import json
import os
import threading
import time

import numpy as np
import pytest

import data
from data.video import decoding
from tests.data import videos

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return videos.write_video(tmp_path_factory.mktemp("file") / "a.avi", NUM_FRAMES, b_frames=2)


@pytest.fixture
def config(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = data.default_config("video_file")
    config.path, config.size, config.repeat = str(path), videos.HEIGHT, False
    return config


def play(config, split="train", num_steps=None, state=None):
    with contextlib.closing(data.load_streams(config, seed=0, split=split)) as streams:
        if state is not None:
            streams.set_state(state)
        return list(itertools.islice(streams, num_steps))


def numbers(batches, slot=0):
    # Frames of 48x64 lose 8 columns on either side: the outer blocks get narrower.
    frames = np.stack([batch["frames"][slot] for batch in batches])
    assert frames.shape[1:] == (videos.HEIGHT, videos.HEIGHT, 3)
    wide = np.concatenate(
        [frames[:, :, :1].repeat(8, 2), frames, frames[:, :, -1:].repeat(8, 2)], 2
    )
    return videos.numbers_of(wide)


def resets(batches):
    return np.stack([batch["reset"] for batch in batches]).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("split", "stride", "expected"),
    [
        ("train", 1, range(30)),
        ("test", 1, range(30, 40)),
        ("all", 1, range(40)),
        ("train", 4, range(0, 30, 4)),
        ("test", 3, range(30, 40, 3)),
        ("all", 7, range(0, 40, 7)),
    ],
)
def test_the_splits(config, split, stride, expected):
    config.stride = stride
    batches = play(config, split)
    assert numbers(batches) == list(expected)
    assert resets(batches) == [0]
    known = data.load_streams(config, seed=0, split=split).num_steps
    assert known == (None if split == "all" else len(expected))


@pytest.mark.parametrize("split", ["train", "all"])
def test_repeat_starts_again_from_the_first_frame(config, split):
    config.repeat, config.stride = True, 4
    batches = play(config, split, 25)
    once = list(range(0, 30 if split == "train" else 40, 4))
    assert numbers(batches) == (4 * once)[:25]
    assert resets(batches) == list(range(0, 25, len(once)))
    assert [int(batch["stream"][0]) for batch in batches[:: len(once)]] == [0, 1, 2, 3][
        : len(batches[:: len(once)])
    ]
    assert data.load_streams(config, seed=0, split=split).num_steps is None


def test_testing_does_not_repeat(config):
    config.repeat = True
    assert numbers(play(config, "test", 30)) == list(range(30, 40))


def test_several_slots_play_segments(config):
    config.batch_size, config.repeat = 4, True
    batches = play(config, "train", 20)
    for slot, (first, stop) in enumerate([(0, 7), (7, 15), (15, 22), (22, 30)]):
        assert numbers(batches, slot) == (3 * list(range(first, stop)))[:20]
    assert batches[0]["stream"].tolist() == [0, 1, 2, 3]
    assert batches[7]["stream"].tolist() == [4, 1, 6, 3]
    assert batches[7]["reset"].tolist() == [True, False, True, False]
    config.repeat = False
    batches = play(config, "train")
    assert len(batches) == 8
    assert batches[-1]["stream"].tolist() == [-1, 1, -1, 3]


@pytest.mark.parametrize("step", [0, 3, 8, 20])
def test_goes_on_exactly(config, step):
    config.batch_size, config.stride, config.repeat = 2, 2, True
    whole = play(config, "train", 24)
    with contextlib.closing(data.load_streams(config, seed=0)) as streams:
        for _ in range(step):
            next(streams)
        state = json.loads(json.dumps(streams.get_state()))
    for batch, expected in zip(play(config, "train", 24 - step, state), whole[step:], strict=True):
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name], value)


def test_a_file_that_has_moved(config, path, tmp_path):
    whole = play(config, "train", 12)
    with contextlib.closing(data.load_streams(config, seed=0)) as streams:
        for _ in range(5):
            next(streams)
        state = json.loads(json.dumps(streams.get_state()))
    # States of before said which file by its path alone.
    older = {**state, "what": {k: v for k, v in state["what"].items() if k != "content"}}
    assert numbers(play(config, "train", 7, older)) == numbers(whole[5:])
    config.path = str(tmp_path / "moved.avi")
    (tmp_path / "moved.avi").write_bytes(path.read_bytes())
    assert numbers(play(config, "train", 7, state)) == numbers(whole[5:])
    with pytest.raises(ValueError, match="path was"):
        play(config, "train", 7, older)
    # The same name and size, other frames.
    other = bytearray(path.read_bytes())
    other[len(other) // 2] ^= 255
    (tmp_path / "moved.avi").write_bytes(other)
    with pytest.raises(ValueError, match=r"content was '.* bytes, .*' and is '.* bytes, .*'"):
        play(config, "all", 7, {**state, "what": {**state["what"], "split": "all"}})


def test_size_is_of_the_shorter_side_and_the_middle_stays(config, path):
    config.size = 24
    [first, *_] = play(config, "all", 1)
    [whole] = decoding.read_frames(path, [0], resize=24)
    np.testing.assert_array_equal(first["frames"][0], whole[:, 4:28])


# What goes wrong.


def test_what_does_not_exist(config, tmp_path):
    config.path = str(tmp_path / "none.avi")
    with pytest.raises(decoding.BadVideo, match=r"none\.avi: cannot be read: No such file"):
        data.load_streams(config, seed=0)
    with pytest.raises(decoding.BadVideo, match=r"none\.avi: cannot be read: No such file"):
        play(config, "all")


@pytest.mark.parametrize("name", ["/dev/video97", "97"])
def test_a_camera_that_does_not_exist(config, name):
    config.path = name
    with pytest.raises(decoding.BadVideo, match="/dev/video97: there is no such camera"):
        play(config)


def test_what_is_no_video(config, tmp_path):
    text = tmp_path / "text.avi"
    text.write_text("not a video " * 1000)
    config.path = str(text)
    for split in ("train", "all"):
        with pytest.raises(decoding.BadVideo, match=r"text\.avi: cannot be decoded: Invalid data"):
            play(config, split)


def test_damage_in_the_middle_comes_after_the_frames_before_it(config, path, tmp_path):
    noise = videos.write_noise(
        tmp_path / "noise.avi", NUM_FRAMES, codec="mjpeg", pix_fmt="yuvj420p"
    )
    cut = videos.edited(noise, "cut.avi", lambda content: content[: len(content) // 2])
    config.path = str(cut)
    with pytest.raises(decoding.BadVideo, match="of 40"):
        data.load_streams(config, seed=0, split="train")
    streams = data.load_streams(config, seed=0, split="all")
    seen = []
    with pytest.raises(decoding.BadVideo, match="of 40"):
        seen.extend(streams)
    [[piece, good]] = streams.get_state()["next"]
    assert piece == 0
    assert 10 < good < 30


def test_frames_that_change_their_size(config, tmp_path):
    """Two MPEG program streams one after the other are one."""
    settings = {"codec": "mpeg2video"}
    small = videos.write_video(tmp_path / "small.mpg", 10, **settings)
    large = videos.write_video(tmp_path / "large.mpg", 10, height=96, width=128, **settings)
    both = tmp_path / "both.mpg"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    config.path = str(both)
    seen = []
    with pytest.raises(decoding.BadVideo, match="has 128x96 pixels, the first one 64x48"):
        seen.extend(data.load_streams(config, seed=0, split="all"))
    with pytest.raises(decoding.BadVideo, match="has 128x96 pixels"):
        data.load_streams(config, seed=0, split="train")


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"path": ""}, "train", "path is empty; give a video file or a camera"),
        ({"stride": 0}, "train", "stride is 0; it must be at least 1"),
        ({"stall_seconds": -1.0}, "train", r"stall_seconds is -1\.0"),
        ({}, "tset", "split is 'tset'; it can be train, test or all"),
        (
            {"stride": 300},
            "train",
            "stride is 300, but .* 40 frames, and a segment of its train",
        ),
        ({"stride": 10}, "test", "a segment of its test part 10: one frame would be left of it"),
        ({"batch_size": 11}, "test", "40 frames; its test part is too short for batch_size=11"),
        ({"path": "0", "batch_size": 2}, "train", "batch_size is 2; 0 is live"),
        ({"path": "0"}, "test", "0 is live: there is no last quarter"),
    ],
)
def test_out_of_range(config, changes, split, message):
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        data.load_streams(config, seed=0, split=split)


# A named pipe stands for all that is live.


@pytest.fixture
def pipe(config, path, tmp_path):
    """Writes part of a file into a pipe, then waits for `release` before it closes the pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    config.path = str(pipe)
    mkv = videos.write_video(tmp_path / "a.mkv", NUM_FRAMES, codec="mjpeg", pix_fmt="yuvj420p")
    release = threading.Event()

    def write(share):
        content = mkv.read_bytes()
        with contextlib.suppress(BrokenPipeError), open(pipe, "wb") as file:
            file.write(content[: int(share * len(content))])
            file.flush()
            release.wait(20)

    threads = []

    def start(share):
        threads.append(threading.Thread(target=write, args=(share,)))
        threads[0].start()
        return release

    yield start
    release.set()
    for thread in threads:
        thread.join(timeout=20)


def test_a_pipe_that_ends(config, pipe):
    pipe(1.0).set()
    batches = play(config)
    assert numbers(batches) == list(range(NUM_FRAMES))
    assert resets(batches) == [0]


def test_a_pipe_that_stalls(config, pipe):
    pipe(0.7)
    config.stall_seconds = 1.0
    seen = []
    start = time.monotonic()
    with pytest.raises(decoding.BadVideo, match=r"pipe: stalls: no frame for stall_seconds=1 s"):
        seen.extend(data.load_streams(config, seed=0))
    assert time.monotonic() - start < 10
