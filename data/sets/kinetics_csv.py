"""Any collection of videos that a CSV file lists, as Kinetics is.

    path,label[,start,end]

One video, or one part of a video, in each line: a path relative to the CSV file's folder (or to
`root`), the name of its class, and, optionally, from when to when, in seconds. A first line with
these names may be there, in any order and among other columns; without it the columns are in the
order above. One file lists what to train on, another what to test.

**Seconds to frames.** Frame n of a file with r frames a second is shown from n / r on; a part has
the frames that begin from `start` on and before `end`. An `end` after the last frame ends there, as
lists round up; a `start` after it is an error.

**Bad files** are found and left out as in `data.sets.video_folder`.
"""

import csv
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import av
import ml_collections

from data.batches.videos import Splits
from data.sets.protocol import clip_config
from data.video import decoding, scan
from data.video.files import FileVideos, Video, add_file_options, check_file_options, skip_bad

_COLUMNS = ("path", "label", "start", "end")


class Row(NamedTuple):
    """One line of the list."""

    path: str  # relative to the root
    label: str
    start: float  # seconds
    end: float  # seconds; infinity for the end of the file
    where: str  # file and line, for messages


def default_config() -> ml_collections.ConfigDict:
    """The fields of `config.data` for lists of videos, with their defaults."""
    config = clip_config("kinetics_csv")
    config.path = ""  # the CSV file of the training videos
    config.test_path = ""  # that of the test videos; empty: no tests
    config.root = ""  # what paths are relative to; empty: the folder of each CSV file
    add_file_options(config)
    return config


def splits(config: ml_collections.ConfigDict, *, seed: int) -> Splits:
    """The videos that `config.path` and `config.test_path` list.

    Raises:
      FileNotFoundError: if a list does not exist.
      ValueError: if a list makes no sense, a test video has a class that no training video has, too
        many files are bad, or a value of `config` is out of range.
    """
    del seed
    if not config.path:
        raise ValueError("path is empty; give the list of videos: --config.data.path=FILE.csv")
    check_file_options(config)
    lists = [config.path, *filter(None, [config.test_path])]
    roots = [config.root or os.path.dirname(os.path.abspath(path)) for path in lists]
    rows = [read(path) for path in lists]
    classes = sorted({row.label for row in rows[0]})
    for row in rows[-1]:
        if row.label not in classes:
            raise ValueError(f"{row.where}: no training video has the class {row.label!r}")
    # Once for each root: the index that a scan leaves has the files of that scan.
    files: dict[str, dict[str, None]] = {root: {} for root in roots}
    for root, of_list in zip(roots, rows, strict=True):
        files[root] |= dict.fromkeys(row.path for row in of_list)
    infos = {root: scan.scan(root, list(named), config.cache_dir) for root, named in files.items()}
    skipped: tuple[tuple[str, str], ...] = ()
    for root in infos:
        skipped += skip_bad(root, infos[root], config.max_bad_fraction)
    parts = [
        _videos(root, of_list, infos[root], classes)
        for root, of_list in zip(roots, rows, strict=True)
    ]
    parts += [[]] * (2 - len(parts))
    roots += roots[:1]
    train, test = (
        FileVideos(root, part, config.resize) for root, part in zip(roots, parts, strict=False)
    )
    return Splits(classes, train, test, skipped)


def read(path: str) -> list[Row]:
    """The lines of a list.

    Raises:
      FileNotFoundError: if it does not exist.
      ValueError: if a line makes no sense, or there is none; the message has its number.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the list of videos {path} does not exist")
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = [
            (number, [cell.strip() for cell in line])
            for number, line in enumerate(csv.reader(file), start=1)
            if any(cell.strip() for cell in line)
        ]
    columns = list(_COLUMNS)
    if lines and {"path", "label"} <= set(lines[0][1]):
        columns = lines.pop(0)[1]
    if not lines:
        raise ValueError(f"{path} lists no videos")
    return [_row(f"{path}, line {number}", line, columns) for number, line in lines]


def _row(where: str, line: Sequence[str], columns: Sequence[str]) -> Row:
    if len(line) > len(columns):
        raise ValueError(f"{where}: {len(line)} columns, not {len(columns)}: {','.join(columns)}")
    cells = dict(zip(columns, line, strict=False))
    if not cells.get("path") or not cells.get("label"):
        raise ValueError(f"{where}: {','.join(line)!r} should be path,label[,start,end]")
    try:
        start, end = float(cells.get("start") or 0), float(cells.get("end") or "inf")
    except ValueError:
        raise ValueError(f"{where}: start and end must be numbers, in seconds") from None
    if not 0 <= start < end:
        raise ValueError(f"{where}: start is {start:g} and end is {end:g}; 0 <= start < end")
    return Row(cells["path"], cells["label"], start, end, where)


def _videos(
    root: str,
    rows: Sequence[Row],
    infos: dict[str, decoding.VideoInfo | decoding.BadVideo],
    classes: Sequence[str],
) -> list[Video]:
    videos = []
    for row in rows:
        info = infos[row.path]
        if isinstance(info, decoding.BadVideo):
            continue
        path = os.path.join(root, row.path)
        start, stop = 0, info.num_frames
        if (row.start, row.end) != (0, math.inf):
            start, stop = frames_between(row.start, row.end, _rate(path, row.where))
            stop = min(stop, info.num_frames)
        if start >= stop:
            raise ValueError(
                f"{row.where}: no frame of {row.path} begins from {row.start:g} s on and before "
                f"{row.end:g} s; it has {info.num_frames} frames"
            )
        videos.append(Video(path, classes.index(row.label), start, stop, info.height, info.width))
    return videos


def frames_between(start: float, end: float, rate: float) -> tuple[int, int]:
    """The first frame that begins from `start` on, and the first from `end` on.

    Args:
      start: seconds.
      end: seconds, perhaps infinity.
      rate: frames a second.

    >>> frames_between(0.1, 0.5, rate=10)
    (1, 5)
    """
    # 0.3 * 10 is a little more than 3, which should not cost a frame.
    first, last = (
        math.ceil(round(seconds * rate, 6)) if math.isfinite(seconds) else 2**62
        for seconds in (start, end)
    )
    return first, last


def _rate(path: str, where: str) -> float:
    with av.open(path, metadata_errors="ignore") as container:
        rate = container.streams.video[0].average_rate
    if not rate:
        raise ValueError(f"{where}: {path} does not say how many frames a second it has")
    return float(rate)
