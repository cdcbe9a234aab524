"""Video files that are in no data set: to be looked at, without classes."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from data.batches.testing import test_batches
from data.batches.videos import Batch, ClipOptions
from data.video import decoding, scan, timing
from data.video.files import FileVideos, Video

# Of an index of what a scan found: no data set has it, so that no other index is replaced.
_ROOT = os.path.abspath(os.sep)

NO_VIDEOS = (  # why nothing of a folder was looked at
    f"no videos in this folder, at any depth; they are known by {', '.join(decoding.EXTENSIONS)}"
)


class Files(NamedTuple):
    """Files, checked.

    Attributes:
      paths: the good ones; `video` of the batches is the number of one of these.
      num_frames: of each of them.
      bad: the others, `(path, reason)` each, and folders without videos.
      batches: an iterator over batches, as `data.Source.test` gives, with labels of 0.
    """

    paths: tuple[str, ...]
    num_frames: tuple[int, ...]
    bad: tuple[tuple[str, str], ...]
    batches: Callable[[], Iterator[Batch]]


def load_files(
    paths: Sequence[str | os.PathLike],
    *,
    size: int,
    resize: int = 0,
    num_frames: int = 64,
    batch_size: int = 8,
    cache_dir: str = "",
) -> Files:
    """Video files as a test takes them: every frame, in centre crops.

    Args:
      paths: files, and folders with files at any depth; those of a folder are taken by their
        extensions. A file comes once.
      size: height and width of the crops, pixels.
      resize: pixels of the shorter side before that; 0 keeps the size.
      num_frames: K, frames of a clip.
      batch_size: clips of a batch.
      cache_dir: as for `data.video.scan`.

    Returns:
      `Files`; every file has been decoded once, unless that is known from before.
    """
    of_path = {os.fspath(path): list(video_files(path)) for path in paths}
    found = list(dict.fromkeys(itertools.chain.from_iterable(of_path.values())))
    absolute = {file: os.path.abspath(os.path.expanduser(file)) for file in found}
    relative = {file: os.path.relpath(absolute[file], _ROOT) for file in found}
    infos = scan.scan(_ROOT, [relative[file] for file in found], cache_dir)
    good, bad = [], [(path, NO_VIDEOS) for path, files in of_path.items() if not files]
    for file in found:
        info = infos[relative[file]]
        is_bad = isinstance(info, decoding.BadVideo)
        reason = info.reason if is_bad else _too_small(info, size, resize)
        (bad if reason else good).append((file, reason or info))
    videos = [
        Video(absolute[file], 0, 0, *info[:3], timing.shown(info.times)) for file, info in good
    ]
    options = ClipOptions(num_frames, size, 1, False, batch_size, 0)

    def batches() -> Iterator[Batch]:
        return test_batches(FileVideos(_ROOT, videos, resize), options, 0, 1, batch_size)

    return Files(
        tuple(file for file, _ in good),
        tuple(info.num_frames for _, info in good),
        tuple(bad),
        batches,
    )


def video_files(path: str | os.PathLike) -> Iterator[str]:
    """The file, or those of a folder, at any depth, that are videos by their names, sorted."""
    path = os.fspath(path)
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder):
        yield path
        return
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(decoding.EXTENSIONS) and not name.startswith("."):
                yield os.path.join(where, name)


def _too_small(info: decoding.VideoInfo, size: int, resize: int) -> str | None:
    height, width = decoding.resized(info.height, info.width, resize)
    if min(height, width) >= size:
        return None
    return f"frames of {height}x{width} pixels are smaller than the crop of {size}x{size}"
