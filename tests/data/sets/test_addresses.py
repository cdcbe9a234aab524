"""Streams from addresses, of a real web server."""

import contextlib
import socket
import threading
import time

import pytest

import data
from data.video import decoding
from tests.data import server, videos
from tests.data.sets.test_video_file import numbers, resets

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server with a file in several containers, cameras, and things that go wrong."""
    folder = tmp_path_factory.mktemp("served")
    names = ("mpeg4.avi", "h264.mkv", "h264.mp4", "vp9.webm")
    files = {
        f"/{name}": videos.write_video(
            folder / name,
            NUM_FRAMES,
            **videos.CODECS[name],
            muxer={"movflags": "faststart"} if name.endswith("mp4") else None,
        )
        for name in names
    }
    noise = videos.write_noise(folder / "noise.mkv", NUM_FRAMES, codec="mjpeg", pix_fmt="yuvj420p")
    index_last = videos.write_noise(  # more than FFmpeg keeps of what it has read
        folder / "index_last.mp4", NUM_FRAMES, codec="mjpeg", pix_fmt="yuvj420p"
    )
    text = folder / "text"
    text.write_text("not a video " * 1000)
    segment = videos.write_video(folder / "a.ts", NUM_FRAMES, **videos.OTHERS["h264.ts"])
    lists = {"/own.m3u8": "a.ts", "/file.m3u8": f"file://{segment}"}
    for name, entry in lists.items():
        text_of_list = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{entry}\n#EXT-X-ENDLIST\n"
        (folder / name[1:]).write_text(text_of_list)
    files |= {name: folder / name[1:] for name in (*lists, "/a.ts")}
    over = threading.Event()
    pages = {name: server.file(path) for name, path in files.items()} | {
        "/camera": server.camera(NUM_FRAMES),
        "/damaged": server.camera(NUM_FRAMES, damaged=7),
        "/stalls": server.camera(9, then=over),
        "/cut.mkv": server.file(noise, share=0.5),
        "/text": server.file(text),
        "/index_last.mp4": server.file(index_last),
    }
    with server.serving(pages) as address:
        yield address
        over.set()


@pytest.fixture
def play(address):
    def play(page, **changes):
        config = data.default_config("video_file")
        config.path = page if "://" in page else address + page
        config.size, config.stall_seconds = videos.HEIGHT, 20.0
        config.update(changes)
        seen = []
        with contextlib.closing(data.load_streams(config, seed=0)) as streams:
            try:
                for batch in streams:
                    seen.append(batch)
            except decoding.BadVideo as error:
                return seen, str(error)
        return seen, None

    return play


@pytest.mark.parametrize("page", ["/mpeg4.avi", "/h264.mkv", "/h264.mp4", "/vp9.webm", "/own.m3u8"])
def test_every_frame_comes_once(play, page):
    batches, error = play(page)
    assert error is None
    assert numbers(batches) == list(range(NUM_FRAMES))
    assert resets(batches) == [0]


@pytest.mark.parametrize("stride", [1, 7])
def test_a_camera_whose_connection_ends(play, stride):
    batches, error = play("/camera", stride=stride)
    assert numbers(batches) == list(range(0, NUM_FRAMES, stride))
    assert f"/camera: cannot be read after {NUM_FRAMES} frames: " in error


def test_an_index_at_the_end_of_a_file_that_comes_in_one_piece(play):
    batches, error = play("/index_last.mp4")
    assert batches == []
    assert "+faststart NEW.mp4 puts the index first" in error


def test_damaged_frames_are_left_out_and_counted(play, caplog):
    batches, _ = play("/damaged")
    assert numbers(batches) == [number for number in range(NUM_FRAMES) if number != 7]
    assert "/damaged: 1 damaged frames were left out" in caplog.text


def test_a_server_that_stalls(play):
    start = time.monotonic()
    batches, error = play("/stalls", stall_seconds=1.0)
    assert numbers(batches) == list(range(len(batches)))
    assert "/stalls: stalls: no frame for stall_seconds=1 s" in error
    assert time.monotonic() - start < 10


def test_a_connection_that_breaks(play):
    batches, error = play("/cut.mkv")
    assert 5 < len(batches) < 35
    assert f"/cut.mkv: cannot be read after {len(batches)} frames: " in error


def test_addresses_that_are_none(play):
    assert play("/nothing")[1].endswith("/nothing: cannot be read: Server returned 404 Not Found")
    assert "/text: cannot be read: Invalid data" in play("/text")[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for scheme in ("http", "rtsp"):
            where = f"{scheme}://me:secret@127.0.0.1:{free.getsockname()[1]}/x"
            error = play(where)[1]
            assert "cannot be read: Connection refused" in error
            assert "secret" not in error
    said = "ftp:// cannot be opened; it can be http, https, rtsp, rtsps"
    assert said in play("ftp://127.0.0.1/a.mkv")[1]


def test_a_playlist_cannot_name_files_of_this_machine(play):
    batches, error = play("/file.m3u8")
    assert batches == []
    assert error is not None


def test_addresses_are_live(address):
    config = data.default_config("video_file")
    config.path = address + "/camera"
    with pytest.raises(ValueError, match="is live: there is no last quarter"):
        data.load_streams(config, seed=0, split="test")
    config.batch_size = 2
    with pytest.raises(ValueError, match="is live and fills one slot"):
        data.load_streams(config, seed=0)
