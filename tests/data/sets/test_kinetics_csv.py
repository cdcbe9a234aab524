import itertools

import numpy as np
import pytest

import data
from data.sets import kinetics_csv
from data.video import boxes, scan
from tests.data import downloads, videos


@pytest.fixture
def config(tmp_path):
    """Two videos at 25 frames a second, 40 and 30 of them."""
    downloads.write(
        tmp_path / "root",
        {
            "a/one.avi": downloads.contents("mpeg4.avi", 40),
            "b/two, too.mp4": downloads.contents("h264.mp4", 30),
        },
    )
    config = data.default_config("kinetics_csv")
    config.path = str(tmp_path / "root" / "train.csv")
    config.cache_dir = str(tmp_path / "cache")
    config.num_frames, config.resize, config.size, config.batch_size = 4, 0, 48, 2
    config.flip = False
    return config


def write(config, text, name="train.csv"):
    path = config.path.replace("train.csv", name)
    with open(path, "w") as file:
        file.write(text)
    return path


def loaded(config):
    """The videos and their frames, as training would see them."""
    source = data.load(config, seed=0)
    box = boxes.Box(0, 0, videos.HEIGHT, videos.WIDTH)
    parts = [
        [
            (source.classes[part.labels[n]], videos.numbers_of(np.stack(list(part.stream(n, box)))))
            for n in range(len(part.labels))
        ]
        for part in source.videos.values()
    ]
    return source, *parts


def test_whole_videos_and_parts(config):
    write(config, 'a/one.avi,x\n"b/two, too.mp4",y,0.2,0.6\na/one.avi,y,1.0,99\n\n')
    config.test_path = write(config, "label,path\nx,a/one.avi\n", "test.csv")
    source, train, test = loaded(config)
    assert source.classes == ("x", "y")
    assert train == [
        ("x", list(range(40))),
        ("y", list(range(5, 15))),
        ("y", list(range(25, 40))),
    ]
    assert test == [("x", list(range(40)))]


def test_columns_by_name_among_others(config):
    write(config, "start,id,label,end,path\n0.4,7,x,0.8,a/one.avi\n,8,x,,a/one.avi\n")
    source, train, test = loaded(config)
    assert train == [("x", list(range(10, 20))), ("x", list(range(40)))]
    assert test == []
    assert source.num_test == 0


def test_both_lists_are_remembered(config, monkeypatch):
    write(config, "a/one.avi,x\n")
    config.test_path = write(config, '"b/two, too.mp4",x\n', "test.csv")
    data.load(config, seed=0)
    monkeypatch.setattr(scan, "_probe_all", None)  # nothing is decoded again
    assert data.load(config, seed=0).num_test == 1


def test_bad_files_are_left_out_and_named(config):
    write(config, "a/one.avi,x\na/none.avi,x\n")
    with pytest.raises(ValueError, match=r"1 of 2 videos are bad(.|\n)*none.avi: cannot be read"):
        data.load(config, seed=0)
    config.max_bad_fraction = 0.5
    source, train, _ = loaded(config)
    assert len(train) == 1
    assert [path[-8:] for path, _ in source.skipped] == ["none.avi"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no videos"),
        ("path,label\n", "lists no videos"),
        ("a/one.avi\n", r"line 1: 'a/one.avi' should be path,label\[,start,end\]"),
        ("a/one.avi,x\n,x\n", "line 2: ',x' should be path,label"),
        ("a/one.avi,x,1,2,3\n", "line 1: 5 columns, not 4"),
        ("a/one.avi,x,a,b\n", "start and end must be numbers"),
        ("a/one.avi,x,2,1\n", "start is 2 and end is 1; 0 <= start < end"),
        ("a/one.avi,x,-1,1\n", "start is -1"),
        ("a/one.avi,x,nan,1\n", "start is nan"),
        ("a/one.avi,x,1.6,2\n", "no frame of a/one.avi begins from 1.6 s on .* it has 40 frames"),
    ],
)
def test_wrong_lists(config, text, said):
    write(config, text)
    with pytest.raises(ValueError, match=said):
        data.load(config, seed=0)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("", "path label start end"),
        ("path label start end", "path label start end"),
        ("Label Path START End", "label path start end"),
        ("filename class start_time end_time", "path label start end"),
        ("Video-Path Class_Name time_start time_end", "path label start end"),
    ],
)
def test_separators_and_headers(config, separator, header, order):
    cells = {"path": "a/one.avi", "label": "x", "start": "0.2", "end": "0.6"}
    lines = [header.split(), [cells[name] for name in order.split()]]
    write(config, "\n".join(separator.join(line) for line in lines if line))
    assert loaded(config)[1] == [("x", list(range(5, 15)))]


def test_numbers_of_a_spreadsheet_in_french(config):
    write(config, "path;label;start;end\na/one.avi;x;0,2;0,6\n")
    assert loaded(config)[1] == [("x", list(range(5, 15)))]
    write(config, "a/one.avi;x;0,2;0,6\n")
    assert loaded(config)[1] == [("x", list(range(5, 15)))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings(config, encoding, line_end):
    text = f"path,label{line_end}a/one.avi,Fußball 跳{line_end}"
    with open(config.path, "wb") as file:
        file.write(text.encode(encoding))
    assert loaded(config)[1] == [("Fußball 跳", list(range(40)))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "a/one.avi,x\na/one.avi,caf\xe9\n".encode("cp1252"),
            r"line 2: b'\\xe9' is not utf-8",
        ),
        ("a/one.avi,x\n".encode("utf-16-le"), "line 1: a byte of zeros is no text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1: b'.x89' is not utf-8"),
        (b"a/one.avi," + b"x" * 200_000, "line 1: field larger than field limit"),
        (b"clip,kind\na/one.avi,x\n", "line 1: 'clip,kind' begins with no video, and names no"),
        (b"youtube_id,time_start\nabc,1\n", "line 1: .* a header has path and label"),
        (b"a/one.avi x\n", "line 1: 'a/one.avi x' begins with no video"),
    ],
)
def test_no_list_of_videos(config, content, said):
    with open(config.path, "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match=said):
        data.load(config, seed=0)


KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"


@pytest.mark.parametrize("folder", ["", "train", "riding a bike", "train/riding_a_bike"])
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_lists_of_kinetics(config, tmp_path, folder, ending):
    """The part from second 1 to 2 of one video is a file, the other video is there whole."""
    files = {
        f"-_aaaaaaaaa_000001_000002{ending}": downloads.contents("mpeg4.avi", 25),
        f"bbbbbbbbbbb{ending}": downloads.contents("mpeg4.avi", 40),
    }
    downloads.write(tmp_path / "root" / folder, files)
    rows = "riding a bike,-_aaaaaaaaa,1,2,train,0\nriding a bike,bbbbbbbbbbb,1,11,train,1\n"
    write(config, KINETICS + rows)
    _, train, _ = loaded(config)
    assert train == [("riding a bike", list(range(25))), ("riding a bike", list(range(25, 40)))]


def test_what_kinetics_has_no_more_is_named(config, tmp_path):
    files = {f"{n:011}_000000_000010.mp4": downloads.contents("mpeg4.avi", 20) for n in range(3)}
    downloads.write(tmp_path / "root", files)
    write(config, KINETICS + "".join(f"x,{n:011},0,10,train,0\n" for n in range(4)))
    source, train, _ = loaded(config)
    assert len(train) == 3
    [(path, reason)] = source.skipped
    assert path.endswith("root/00000000003_000000_000010.mp4")
    assert reason == "cannot be read: No such file or directory"


def test_a_class_that_is_only_tested(config):
    write(config, "a/one.avi,x\n")
    config.test_path = write(config, "a/one.avi,z\n", "test.csv")
    with pytest.raises(ValueError, match=r"test.csv, line 1: no training video has the class 'z'"):
        data.load(config, seed=0)


def test_no_list(config):
    with pytest.raises(FileNotFoundError, match=r"the list of videos .* does not exist"):
        data.load(config, seed=0)
    config.path = ""
    with pytest.raises(ValueError, match=r"--config.data.path=FILE.csv"):
        data.load(config, seed=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("resize", -5, "resize is -5; it must be 0 or more pixels"),
        ("resize", 47, "size is 48, but .* is resized to 47 pixels"),
        ("max_bad_fraction", 1.5, "max_bad_fraction is 1.5; it must be from 0 to 1"),
        ("max_bad_fraction", float("nan"), "max_bad_fraction is nan"),
    ],
)
def test_options_out_of_range(config, monkeypatch, field, value, said):
    write(config, "a/one.avi,x\n")
    config[field] = value
    monkeypatch.setattr(scan, "scan", None)  # said before a file is decoded
    with pytest.raises(ValueError, match=said):
        data.load(config, seed=0)


@pytest.mark.parametrize("rate", [24, 25, 30, 30000 / 1001])
def test_neighbouring_parts_share_no_frame_and_lose_none(rate):
    borders = np.arange(0, 20, 0.3)
    ends = [
        kinetics_csv.frames_between(start, end, rate) for start, end in itertools.pairwise(borders)
    ]
    assert all(first[1] == second[0] for first, second in itertools.pairwise(ends))
