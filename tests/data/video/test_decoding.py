import pathlib
import pickle
import struct
import tracemalloc

import av
import cv2
import numpy as np
import pytest

from data.video import boxes, decoding
from tests.data import videos


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One video of 40 numbered frames and one of noise for each codec and container."""
    folder = tmp_path_factory.mktemp("videos")
    for name, settings in videos.CODECS.items():
        videos.write_video(folder / name, **settings)
        videos.write_noise(folder / f"noise-{name}", **settings)
    return folder


def pictures(path):
    with av.open(str(path)) as container:
        return {
            av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)
        }


@pytest.mark.parametrize("name", videos.CODECS)
def test_every_frame_is_where_it_was_written(folder, name):
    path = folder / name
    assert decoding.probe(path) == (40, videos.HEIGHT, videos.WIDTH, None)
    frames = list(decoding.iter_frames(path))
    assert {frame.shape for frame in frames} == {(videos.HEIGHT, videos.WIDTH, 3)}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert videos.numbers_of(np.stack(frames)) == list(range(40))


@pytest.mark.parametrize("name", [*videos.OTHERS, "theora.ogv"])
def test_other_containers(tmp_path, name):
    path = pathlib.Path(videos.__file__).with_name(name)
    if name in videos.OTHERS:
        path = videos.write_video(tmp_path / name, **videos.OTHERS[name])
    assert name.endswith(decoding.EXTENSIONS)
    assert decoding.probe(path) == (40, videos.HEIGHT, videos.WIDTH, None)
    assert videos.numbers_of(np.stack(list(decoding.iter_frames(path)))) == list(range(40))
    assert videos.numbers_of(decoding.read_frames(path, [39, 0, 17])) == [39, 0, 17]


@pytest.mark.parametrize("name", ["mpeg4.avi", "h264.mp4", "h264.mkv"])
def test_the_files_have_b_frames(folder, name):
    assert "B" in pictures(folder / name)


@pytest.mark.parametrize("name", videos.CODECS)
@pytest.mark.parametrize(
    "indices", [[0], [39], [17, 18, 19], list(range(3, 40, 6)), [5, 0, 39, 5], [2, 1, 0, 2, 1, 0]]
)
def test_read_frames_reads_those_frames(folder, name, indices):
    frames = decoding.read_frames(folder / name, indices)
    assert videos.numbers_of(frames) == indices
    everything = np.stack(list(decoding.iter_frames(folder / name)))
    np.testing.assert_array_equal(frames, everything[indices])


def test_a_part_of_the_frames(folder):
    frames = list(decoding.iter_frames(folder / "mpeg4.avi", start=7, stop=12))
    assert videos.numbers_of(np.stack(frames)) == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((48, 64), 24, (24, 32)),
        ((48, 64), 36, (36, 48)),
        ((64, 48), 96, (128, 96)),
        ((240, 320), 128, (128, 171)),
        ((48, 64), 0, (48, 64)),
        ((48, 64), None, (48, 64)),
    ],
)
def test_resized(size, resize, expected):
    assert decoding.resized(*size, resize) == expected


def test_resize_is_bilinear_and_the_crop_comes_after_it(folder):
    path = folder / "h264.mp4"
    whole = decoding.read_frames(path, [3, 21])
    expected = [cv2.resize(frame, (27, 20), interpolation=cv2.INTER_LINEAR) for frame in whole]
    np.testing.assert_array_equal(decoding.read_frames(path, [3, 21], resize=20), expected)
    box = boxes.Box(top=2, left=9, height=18, width=15)
    cropped = decoding.read_frames(path, [3, 21], resize=20, crop=box)
    np.testing.assert_array_equal(cropped, np.stack(expected)[:, 2:20, 9:24])
    streamed = list(decoding.iter_frames(path, resize=20, crop=box))
    np.testing.assert_array_equal(np.stack(streamed)[[3, 21]], cropped)


@pytest.mark.parametrize("box", [boxes.Box(40, 0, 9, 9), boxes.Box(0, 56, 9, 9)])
def test_a_crop_that_leaves_the_frame(folder, box):
    with pytest.raises(ValueError, match="leaves the frame of 48x64"):
        decoding.read_frames(folder / "h264.mp4", [0], crop=box)


@pytest.mark.parametrize("indices", [[], [-1], [3, -2]])
def test_indices_that_are_none(folder, indices):
    with pytest.raises(ValueError, match="one or more frame numbers from 0"):
        decoding.read_frames(folder / "h264.mp4", indices)


def test_a_frame_after_the_last(folder):
    with pytest.raises(decoding.BadVideo, match="has 40 frames, but frame 40 was asked for"):
        decoding.read_frames(folder / "h264.mp4", [1, 40])
    with pytest.raises(decoding.BadVideo, match="has 40 frames, but frame 49 was asked for"):
        list(decoding.iter_frames(folder / "h264.mp4", stop=50))


# Damage. Noise fills the files, so that the middle of the file is in the middle of the frames.


def truncated(share):
    return lambda data: data[: int(len(data) * share)]


def zeroed(data):
    middle = len(data) // 2
    data[middle : middle + len(data) // 5] = bytes(len(data) // 5)


@pytest.mark.parametrize("name", videos.CODECS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_truncated(folder, name, share):
    path = videos.edited(folder / f"noise-{name}", f"truncated-{name}", truncated(share))
    with pytest.raises(decoding.BadVideo):
        decoding.probe(path)


# A hole in a WebM file cannot be told from a video that never had those frames.
@pytest.mark.parametrize("name", [name for name in videos.CODECS if name != "vp9.webm"])
def test_zeroed_middle(folder, name):
    path = videos.edited(folder / f"noise-{name}", f"zeroed-{name}", zeroed)
    with pytest.raises(decoding.BadVideo, match=r"decoded after|ends after"):
        decoding.probe(path)


def test_fewer_frames_than_declared(folder):
    """An AVI that says it has 60 frames and is otherwise whole."""

    def declare_60(data):
        lengths = [at for at in range(0, 400, 4) if data[at : at + 4] == struct.pack("<I", 40)]
        assert lengths
        for at in lengths:
            data[at : at + 4] = struct.pack("<I", 60)

    path = videos.edited(folder / "mjpeg.avi", "declares-60.avi", declare_60)
    with pytest.raises(decoding.BadVideo, match="ends after 40 of 60 declared frames"):
        decoding.probe(path)
    with pytest.raises(decoding.BadVideo, match="40 of 60"):
        list(decoding.iter_frames(path))
    # What there is can still be read; it is the check at the start that keeps such files out.
    assert videos.numbers_of(decoding.read_frames(path, [39])) == [39]


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm"])
def test_matroska_that_ends_before_its_declared_duration(folder, name):
    path = videos.edited(folder / f"noise-{name}", f"short-{name}", truncated(0.6))
    with pytest.raises(decoding.BadVideo, match=r"ends after \d\.\d\d s of 1\.60 s declared"):
        decoding.probe(path)


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
def test_mp4_whose_header_comes_first(tmp_path, movflags):
    """Such files open although their end is missing, unlike those with the header at the end."""
    path = videos.write_video(tmp_path / "a.mp4", codec="libx264", muxer={"movflags": movflags})
    assert decoding.probe(path).num_frames == 40
    path = videos.edited(path, "truncated.mp4", truncated(0.8))
    with pytest.raises(decoding.BadVideo, match=r"ends after|decoded after"):
        decoding.probe(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is a text, not a video\n" * 100, "cannot be decoded: Invalid data"),
        (b"\x1b[1mcoloured\x1b[0m text\n" * 100, "cannot be decoded: Invalid data"),
        (b"\0" * 5000, "cannot be decoded: Invalid data"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "cannot be decoded"),
    ],
)
def test_not_a_video(tmp_path, content, reason):
    path = tmp_path / "named.avi"
    path.write_bytes(content)
    with pytest.raises(decoding.BadVideo, match=reason) as error:
        decoding.probe(path)
    assert error.value.path == str(path)
    assert str(error.value).startswith(str(path))


def test_a_picture_is_no_video(tmp_path):
    path = tmp_path / "picture.avi"
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    with pytest.raises(decoding.BadVideo):
        decoding.probe(path)


@pytest.mark.parametrize("with_cover", [False, True])
def test_sound_only(tmp_path, with_cover):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        if with_cover:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic.value
            picture = np.zeros((32, 32, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(cover.encode(picture.reformat(format="yuvj420p")))
            container.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(decoding.BadVideo, match="has no video stream"):
        decoding.probe(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(decoding.UnreadableVideo, match="No such file"):
        decoding.probe(tmp_path / "none.avi")
    with pytest.raises(decoding.UnreadableVideo, match="Is a directory"):
        decoding.probe(tmp_path)


def test_awkward_names(folder, tmp_path):
    for name in ("café (1)&;!%d.avi", "concat:x.avi", "blank .avi"):
        path = tmp_path / name
        path.write_bytes((folder / "mpeg4.avi").read_bytes())
        assert decoding.probe(path).num_frames == 40
    bad = pathlib.Path(f"{tmp_path}/\udce9.avi")  # a name that is not UTF-8
    bad.write_bytes(b"text")
    with pytest.raises(decoding.BadVideo) as error:
        decoding.probe(bad)
    str(error.value).encode()


def test_the_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(decoding.BadVideo("a.avi", "is broken")))
    assert (error.path, error.reason, str(error)) == ("a.avi", "is broken", "a.avi: is broken")


def matrix(*numbers):
    return struct.pack(">9i", *numbers)


@pytest.mark.parametrize(
    ("transformation", "quarter_turns"),  # counterclockwise
    [
        (matrix(0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30), -1),
        (matrix(-1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30), 2),
        (matrix(0, -1 << 16, 0, 1 << 16, 0, 0, 0, 64 << 16, 1 << 30), 1),
    ],
)
def test_phones_write_a_rotation_into_the_file(folder, transformation, quarter_turns):
    def rotate(data):
        at = data.index(b"tkhd") + 44
        data[at : at + 36] = transformation

    path = videos.edited(folder / "h264.mp4", f"rotated-{quarter_turns}.mp4", rotate)
    upright = np.rot90(decoding.read_frames(folder / "h264.mp4", [21])[0], quarter_turns)
    np.testing.assert_array_equal(decoding.read_frames(path, [21])[0], upright)
    assert decoding.probe(path)[1:3] == upright.shape[:2]
    height, width = decoding.resized(*upright.shape[:2], 24)
    assert decoding.read_frames(path, [21], resize=24).shape == (1, height, width, 3)


@pytest.mark.parametrize("cut", [4, 12, 15, 30])  # every 12th frame is a key frame
def test_an_edit_list_cuts_frames_away(folder, cut):
    """An MP4 cut without encoding it again keeps all frames and a note of which to show."""

    def edit(data):
        at = data.index(b"elst") + 12
        duration, media_time = struct.unpack(">Ii", data[at : at + 8])
        # Movie time is in milliseconds, media time in 1/12800 s; a frame is 40 ms.
        data[at : at + 8] = struct.pack(">Ii", duration - cut * 40, media_time + cut * 512)

    path = videos.edited(folder / "h264.mp4", "cut.mp4", edit)
    assert decoding.probe(path).num_frames == 40 - cut
    assert videos.numbers_of(np.stack(list(decoding.iter_frames(path)))) == list(range(cut, 40))


def test_memory_does_not_depend_on_the_length(tmp_path):
    path = videos.write_video(tmp_path / "long.avi", 500, codec="mjpeg", pix_fmt="yuvj420p")
    frame_bytes = videos.HEIGHT * videos.WIDTH * 3
    tracemalloc.start()
    try:
        assert sum(1 for _ in decoding.iter_frames(path)) == 500
        assert tracemalloc.get_traced_memory()[1] < 50 * frame_bytes
        tracemalloc.reset_peak()
        decoding.read_frames(path, [490, 491, 499])
        assert tracemalloc.get_traced_memory()[1] < 50 * frame_bytes
    finally:
        tracemalloc.stop()


def test_a_device():
    """FFmpeg's own test picture is opened the way a camera is."""
    with decoding.opened("testsrc=size=64x48:duration=0.2", device="lavfi", options={}) as device:
        frames = [frame.to_ndarray(format="rgb24") for frame in decoding.frames_of("it", device)]
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    with (
        pytest.raises(decoding.BadVideo, match="it: cannot be decoded: no container format"),
        decoding.opened("it", device="none", options={}),
    ):
        pass
