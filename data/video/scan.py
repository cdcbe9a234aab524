"""Checks video files by decoding every one of them, once.

Decoding a whole data set takes a while, so what was found is kept in a small index in the user's
cache directory, never in the folder of videos, which may be read-only. A file is checked again when
its size or its time of modification changes, or PyAV does.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence

import av
import rich.console
import rich.progress
from absl import logging

from data.video import decoding

# Goes up when probing changes, so that old indices are not used.
_VERSION = 2


def scan(
    root: str, files: Sequence[str], cache_dir: str = ""
) -> dict[str, decoding.VideoInfo | decoding.BadVideo]:
    """Decodes every file that the index does not know, with a progress bar.

    Args:
      root: the folder of videos; it has an index of its own.
      files: paths relative to `root`.
      cache_dir: where indices are kept; empty takes `$XDG_CACHE_HOME/sideways_jax`, which is
        `~/.cache/sideways_jax` where that is not set.

    Returns:
      For every one of `files`, in that order, what is in it, or what is wrong with it.
    """
    index_path = _index_path(root, cache_dir)
    index = _read_index(index_path)
    found, unknown = {}, {}
    for file in files:
        entry = index.get(file)
        try:
            key = _key(root, file)
        except OSError as error:
            found[file] = decoding.UnreadableVideo(file, f"cannot be read: {error.strerror}")
            continue
        if entry and entry["key"] == key:
            found[file] = _result(os.path.join(root, file), entry)
        else:
            unknown[file] = key
    if unknown:
        try:
            for file, result in _probe_all(root, list(unknown)):
                found[file] = result
        finally:
            # Also when it is interrupted: the next time it goes on from here.
            entries = {
                file: _entry(unknown.get(file) or index[file]["key"], found[file])
                for file in files
                if file in found and not isinstance(found[file], decoding.UnreadableVideo)
            }
            _write_index(index_path, entries)
    return {file: found[file] for file in files}


def _probe_all(
    root: str, files: Sequence[str]
) -> Iterator[tuple[str, decoding.VideoInfo | decoding.BadVideo]]:
    def probe(file: str) -> decoding.VideoInfo | decoding.BadVideo:
        try:
            return decoding.probe(os.path.join(root, file))
        except decoding.BadVideo as error:
            return error

    # Standard error, so that the output of a program stays its own.
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("checking videos"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        with rich.progress.Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(files))
            running = {pool.submit(probe, file): file for file in files}
            for done in concurrent.futures.as_completed(running):
                yield running[done], done.result()
                progress.advance(task)
    finally:
        pool.shutdown(cancel_futures=True)


def _index_path(root: str, cache_dir: str) -> str:
    if not cache_dir:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        cache_dir = os.path.join(base, "sideways_jax")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return os.path.join(os.path.expanduser(cache_dir), f"videos-{name}.json")


def _key(root: str, file: str) -> list[int]:
    status = os.stat(os.path.join(root, file))
    return [status.st_size, status.st_mtime_ns]


def _entry(key: list[int], result: decoding.VideoInfo | decoding.BadVideo) -> dict:
    if isinstance(result, decoding.BadVideo):
        return {"key": key, "bad": result.reason}
    return {"key": key, "video": [*result[:3], result.times and list(result.times)]}


def _result(path: str, entry: dict) -> decoding.VideoInfo | decoding.BadVideo:
    if "bad" in entry:
        return decoding.BadVideo(path, entry["bad"])
    num_frames, height, width, times = entry["video"]
    return decoding.VideoInfo(num_frames, height, width, times and array("d", times))


def _read_index(path: str) -> dict:
    """The entries of the index by file; none if there is no index or it cannot be used."""
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        return index["files"] if index["made_by"] == _made_by() else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("Ignoring the index of videos %s: %s", path, error)
        return {}


def _write_index(path: str, entries: dict) -> None:
    """Replaces the index at once; without a place to write to, the next scan starts over."""
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=os.path.dirname(path), suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            temporary = file.name
            json.dump({"made_by": _made_by(), "files": entries}, file)
        os.replace(temporary, path)
    except OSError as error:
        logging.warning(
            "The index of videos cannot be kept (%s), so all videos will be checked again the next "
            "time. Set config.data.cache_dir to a folder that can be written to.",
            error,
        )
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.remove(temporary)


def _made_by() -> list:
    return [_VERSION, av.__version__]
