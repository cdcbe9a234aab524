"""Any collection of videos that a CSV file lists, as Kinetics is.

    path,label[,start,end]

One video, or one part of a video, in each line: a path relative to the CSV file's folder (or to
`root`), the name of its class, and, optionally, from when to when, in seconds. A first line with
these names may be there, in any order and among other columns; without it the columns are in the
order above. One file lists what to train on, another what to test. `data.video.lists` says what
else is read: other separators, encodings and names of columns.

**Kinetics' own lists** are read as they are, `label,youtube_id,time_start,time_end,split`. A file
ID_000010_000020.mp4 is the part from second 10 to 20 already, a file ID.mp4 a whole video. They are
in `root`, or in folders of it with the name of the split, of the class, or SPLIT/CLASS.

**Seconds to frames.** Frame n of a file with r frames a second is shown from n / r on; a part has
the frames that begin from `start` on and before `end`. An `end` after the last frame ends there, as
lists round up; a `start` after it is an error. Where the rate of a file varies, time stamps decide
which frames these are, and they come at its mean rate: a frame that is held comes several times
(`data.video.timing`).

**Bad files** are found and left out as in `data.sets.video_folder`.
"""

import math
import os
from array import array
from collections.abc import Sequence

import av
import ml_collections
import numpy as np

from data.batches.videos import Splits
from data.sets.protocol import clip_config
from data.video import decoding, scan, timing
from data.video import lists as list_files
from data.video.files import FileVideos, Video, add_file_options, check_file_options, skip_bad


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
    root = os.path.expanduser(config.root)
    roots = [root or os.path.dirname(os.path.abspath(path)) for path in lists]
    rows = [list_files.read(path, root) for path, root in zip(lists, roots, strict=True)]
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


def _videos(
    root: str,
    rows: Sequence[list_files.Row],
    infos: dict[str, decoding.VideoInfo | decoding.BadVideo],
    classes: Sequence[str],
) -> list[Video]:
    videos = []
    for row in rows:
        info = infos[row.path]
        if isinstance(info, decoding.BadVideo):
            continue
        path = os.path.join(root, row.path)
        start, stop, shown = _part(path, row, info)
        if start >= stop:
            raise ValueError(
                f"{row.where}: no frame of {row.path} begins from {row.start:g} s on and before "
                f"{row.end:g} s; it has {info.num_frames} frames"
            )
        label = classes.index(row.label)
        videos.append(Video(path, label, start, stop, info.height, info.width, shown))
    return videos


def _part(
    path: str, row: list_files.Row, info: decoding.VideoInfo
) -> tuple[int, int, array | None]:
    """`start`, `stop` and `shown` of a `Video`; `start >= stop` if no frame begins in the part."""
    whole = (row.start, row.end) == (0, math.inf)
    if info.times is None:
        if whole:
            return 0, info.num_frames, None
        start, stop = frames_between(row.start, row.end, _rate(path, row.where))
        return start, min(stop, info.num_frames), None
    shown = timing.shown(info.times)
    if whole:
        return 0, info.num_frames, shown
    first, last = timing.begun(info.times, row.start, row.end)
    if first >= last:
        return 0, 0, None
    start, stop = frames_between(row.start, row.end, timing.rate(info.times))
    # A part that is shorter than a frame at the mean rate has one, too.
    start = min(start, info.num_frames - 1)
    stop = max(min(stop, info.num_frames), start + 1)
    # What was on the screen before the part began is not of it.
    part = np.clip(shown[start:stop], first, last - 1)
    return 0, len(part), array("i", part)


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
