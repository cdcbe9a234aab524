"""Videos whose frames do not come at a constant rate, from the file to the batch."""

import itertools
import math
from array import array

import numpy as np
import pytest

import data
from data.video import boxes, decoding, files, scan, timing
from tests.data import videos

WHOLE = boxes.Box(0, 0, videos.HEIGHT, videos.WIDTH)
# 20 frames at 25 a second, then 20 at 5 a second.
TIMES = [*(n / 25 for n in range(20)), *(0.8 + n / 5 for n in range(20))]
FORMATS = {
    "a.mp4": {"codec": "libx264", "b_frames": 2},
    "a.mkv": {"codec": "libx264", "b_frames": 2},
    "a.mov": {"codec": "mpeg4", "b_frames": 2},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.webm": videos.CODECS["vp9.webm"],
}


def literal(times, start=0.0, end=math.inf):
    """Every step of the mean rate in that time: the last frame of the part that has begun in the
    middle of the step, or the first that begins."""
    rate = (len(times) - 1) / (times[-1] - times[0])
    part = [k for k, time in enumerate(times) if start <= time < end]
    return [
        max([k for k in part if times[k] <= (n + 0.5) / rate], default=part[0])
        for n in range(len(times))
        if start <= n / rate < end
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_time_stamps_are_found(tmp_path, name):
    info = decoding.probe(videos.write_video(tmp_path / name, times=TIMES, **FORMATS[name]))
    assert info[:3] == (40, videos.HEIGHT, videos.WIDTH)
    np.testing.assert_allclose(info.times, TIMES, atol=1e-3)
    assert list(timing.shown(info.times)) == literal(TIMES)


def test_the_index_of_a_scan_keeps_them(tmp_path):
    videos.write_video(tmp_path / "a.mp4", times=TIMES, **FORMATS["a.mp4"])
    found = [scan.scan(str(tmp_path), ["a.mp4"], str(tmp_path / "cache")) for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[1]["a.mp4"].times) == 40


@pytest.mark.parametrize(
    "stamps",
    [
        [],
        [0.0],
        [0.0, 1.0],
        [n / 25 for n in range(1000)],
        [1.4 + n * 1001 / 30000 for n in range(1000)],
        [round(n / 29.97, 3) for n in range(1000)],
        [n / 25 + 0.015 * (-1) ** n for n in range(1000)],  # jitter of less than half a frame
        [0.0, 0.1, None, 0.9],  # as some muxers leave them
        [0.0, 0.9, 0.1, 1.0],  # as some muxers guess them
        [0.0, 0.0, 0.9, 1.0],
    ],
)
def test_rates_that_are_as_good_as_constant_or_not_known(stamps):
    assert timing.varying(stamps) is None


@pytest.fixture
def config(tmp_path):
    """A folder with a video of a varying rate and one of a constant rate."""
    folder = tmp_path / "videos"
    videos.write_video(folder / "a" / "1.mkv", times=TIMES, **FORMATS["a.mkv"])
    videos.write_video(folder / "b" / "1.mkv", **FORMATS["a.mkv"])
    config = data.default_config("video_folder")
    config.path, config.cache_dir = str(folder), str(tmp_path / "cache")
    config.num_frames, config.resize, config.size, config.batch_size = 8, 0, 48, 1
    config.test_fraction, config.flip = 0.0, False
    return config


def test_a_stride_in_a_folder_is_time(config):
    """Frames that are four steps apart, in the order of time, held ones more than once."""
    videos_of_train = data.load(config, seed=0).videos["train"]
    expected = literal(TIMES)
    assert len(set(expected)) < 40
    assert videos_of_train.num_frames == [40, 40]
    rng = np.random.default_rng(0)
    for stride in (1, 4):
        steps = np.arange(0, 40, stride)
        read = [videos.numbers_of(videos_of_train.read(n, steps, WHOLE, rng)) for n in (0, 1)]
        assert read == [expected[::stride], steps.tolist()]
    streamed = [videos.numbers_of(np.stack(list(videos_of_train.stream(n, WHOLE)))) for n in (0, 1)]
    assert streamed == [expected, list(range(40))]


def test_a_part_of_a_video_in_time(config):
    """A class with one video is cut in time: what is tested is what training has not seen."""
    config.test_fraction = 0.25
    parts = data.load(config, seed=0).videos
    shown = [videos.numbers_of(np.stack(list(parts[part].stream(0, WHOLE)))) for part in parts]
    assert shown == [literal(TIMES)[:30], literal(TIMES)[30:]]


def test_videos_of_a_constant_rate_have_the_fingerprint_that_they_had(tmp_path):
    """Runs of before go on: this one was computed before there were varying rates."""
    plain = [files.Video(str(tmp_path / "a.avi"), 0, 0, 40, 48, 64)]
    assert files.FileVideos(str(tmp_path), plain, 128).fingerprint == "e872b282a59516e2"
    varying = [plain[0]._replace(shown=array("i", range(40)))]
    assert files.FileVideos(str(tmp_path), varying, 128).fingerprint != "e872b282a59516e2"


@pytest.fixture
def listed(tmp_path):
    """The frames that a list has, by class."""
    videos.write_video(tmp_path / "a.mp4", times=TIMES, **FORMATS["a.mp4"])

    def listed(text):
        (tmp_path / "list.csv").write_text(text)
        config = data.default_config("kinetics_csv")
        config.path, config.cache_dir = str(tmp_path / "list.csv"), str(tmp_path / "cache")
        config.num_frames, config.resize, config.size, config.batch_size = 4, 0, 48, 1
        source = data.load(config, seed=0)
        train = source.videos["train"]
        return [
            videos.numbers_of(np.stack(list(train.stream(n, WHOLE))))
            for n in range(source.num_train)
        ]

    return listed


def test_a_list_labels_frames_by_their_time_stamps(listed):
    """Every frame begins in the part that it is given to."""
    borders = [0, 0.4, 0.8, 1.8, 2.8, 4.8]
    spans = list(itertools.pairwise(borders))
    parts = listed("".join(f"a.mp4,x,{start},{end}\n" for start, end in spans))
    for shown, (start, end) in zip(parts, spans, strict=True):
        assert all(start <= TIMES[number] < end for number in shown)
        assert shown == literal(TIMES, start, end)
    assert len(set(itertools.chain(*parts))) > 25
    assert listed("a.mp4,x\n") == [literal(TIMES)]


def test_parts_shorter_than_a_frame_at_the_mean_rate(listed):
    assert listed("a.mp4,x,0.4,0.44\na.mp4,y,4.59,4.61\n") == [[10], [39]]
    with pytest.raises(ValueError, match=r"no frame of a.mp4 begins from 1.01 s on and before 1.1"):
        listed("a.mp4,x,1.01,1.1\n")
