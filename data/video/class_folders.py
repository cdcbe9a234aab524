"""Which video files there are in a folder with a folder for each class.

What is left alone is counted in one warning: a folder of 500 files of which 3 are used looks like a
folder of 3 otherwise.
"""

import collections
import os
from collections.abc import Iterable
from typing import NamedTuple

from absl import logging

from data.video import decoding

_TEST_NAMES = ("test", "val", "valid", "validation")  # the first one that is there


class _Children(NamedTuple):
    """Names of what is in a folder, sorted, without what is hidden."""

    folders: list[str]
    files: list[str]


def find(root: str) -> dict[str, dict[str, list[str]]]:
    """The video files below `root`, by part and class, all sorted by name.

    Returns:
      `{"train": {class: [file, ...]}, "test": {...}}`, or `{"": {class: [file, ...]}}` for a folder
      that is not split. Files are relative to `root`. Where there is no folder `test`, "test" has
      the files of `val`, `valid` or `validation`.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if there is no class in it, a class without a video, or a test class that is not
        a training class.
    """
    shown = decoding.printable(root)
    if not os.path.isdir(root):
        kind = "is not a folder" if os.path.exists(root) else "does not exist"
        raise FileNotFoundError(f"the folder of videos {shown} {kind}")
    folders, files = _children(root)
    train, test = _parts(root, folders)
    if train and test:
        if others := [name for name in folders if name not in (train, test)]:
            logging.warning(
                "Using %s and %s of %s, not %s",
                *(train, test, shown, ", ".join(map(decoding.printable, others))),
            )
        parts = {"train": _classes(root, train), "test": _classes(root, test)}
        if unknown := sorted(set(parts["test"]) - set(parts["train"])):
            raise ValueError(
                f"{shown}: {test} has classes that {train} has not: "
                f"{', '.join(map(decoding.printable, unknown))}"
            )
    elif train or test:
        there, other = (train, "test") if train else (test, "train")
        raise ValueError(
            f"{shown} has {there}/CLASS but no {other}/CLASS; add it, or put "
            "the classes directly into the folder to have them split"
        )
    elif not folders:
        loose = [name for name in files if _is_video(name)]
        found = f"{len(loose)} videos, but not in class folders" if loose else "nothing to use"
        raise ValueError(
            f"{shown} has no folders of videos ({found}); every class needs a folder of its own, "
            "DIR/CLASS/*.mp4"
        )
    else:
        parts = {"": _classes(root, "")}
    _count_left_alone(root, files, (train, test) if train else ("",))
    return parts


def _parts(root: str, folders: list[str]) -> tuple[str, str]:
    """The names of the folders of training and test classes; empty where there is none."""
    names = [name for name in ("train", *_TEST_NAMES) if name in folders]
    split = {name for name in names if _children(os.path.join(root, name)).folders}
    train = "train" if "train" in split else ""
    # `val` alone may be the name of a class.
    test = next((name for name in _TEST_NAMES if name in split and (train or name == "test")), "")
    return train, test


def _classes(root: str, part: str) -> dict[str, list[str]]:
    """The video files of every class of one part, relative to `root`."""
    classes = {}
    for name in _children(os.path.join(root, part)).folders:
        folders, files = _children(os.path.join(root, part, name))
        videos = [os.path.join(part, name, file) for file in files if _is_video(file)]
        if not videos:
            holds = f"{len(files)} other files ({_kinds(files)})" if files else ""
            holds = " and ".join(filter(None, [holds, folders and f"{len(folders)} folders"]))
            raise ValueError(
                f"the class {decoding.printable(os.path.join(root, part, name))} has no videos "
                f"({', '.join(decoding.EXTENSIONS)}); it has {holds or 'nothing in it'}"
            )
        classes[name] = videos
    return classes


def _count_left_alone(root: str, beside: list[str], parts: Iterable[str]) -> None:
    """Warns of what no class has: other files, videos outside of class folders, deeper folders."""
    loose, other, deeper = list(beside), [], []
    for part in parts:
        classes, files = _children(os.path.join(root, part))
        loose += files if part else []
        for name in classes:
            folders, files = _children(os.path.join(root, part, name))
            deeper += [os.path.join(part, name, folder) for folder in folders]
            other += [file for file in files if not _is_video(file)]
    loose = [file for file in loose if _is_video(file)]
    counted = [
        other and f"{len(other)} files that are no videos by their names ({_kinds(other)})",
        loose and f"{len(loose)} videos that are in no class folder ({_some(loose)})",
        deeper and f"{len(deeper)} folders inside class folders ({_some(deeper)})",
    ]
    if any(counted):
        logging.warning(
            "Left alone in %s: %s", decoding.printable(root), "; ".join(filter(None, counted))
        )


def _children(folder: str) -> _Children:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in shown if _is_folder(entry))
    return _Children(folders, sorted({entry.name for entry in shown} - set(folders)))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself: a file that cannot be opened, as the scan will say.
        return False


def _is_video(name: str) -> bool:
    return name.lower().endswith(decoding.EXTENSIONS)


def _kinds(files: list[str]) -> str:
    """How many files there are of each extension, the most frequent first.

    >>> _kinds(["a.txt", "b.JPG", "c.jpg", "LICENSE"])
    '2 .jpg, .txt, LICENSE'
    """
    kinds = collections.Counter(os.path.splitext(file)[1].lower() or file for file in files)
    return _some([f"{n} {kind}" if n > 1 else kind for kind, n in kinds.most_common()])


def _some(names: list[str]) -> str:
    """The first five names.

    >>> _some(list("abcdefg"))
    'a, b, c, d, e, ...'
    """
    return ", ".join([decoding.printable(name) for name in names[:5]] + ["..."][: len(names) > 5])
