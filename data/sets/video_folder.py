"""A folder of videos, one subfolder for each class.

    DIR/CLASS/*.avi|mp4|mkv|mov|webm                 split into training and test videos here
    DIR/train/CLASS/..., DIR/test/CLASS/...          split already

The second form is taken when DIR has folders `train` and `test` with folders in them. Extensions
may be in upper or lower case; hidden files and folders, other files and deeper folders are left
alone.

**The split** of the first form is made class by class and depends on the names of the files alone,
not on the seed: `test_fraction` of the videos of a class, rounded, but at least one and not all,
are test videos. Which ones is decided by a hash of class and name. If several clips were cut from
one recording, split them yourself: a random split puts near copies of test videos into training.

**A class with one video** cannot be split that way. The video is cut in time instead: its last
`test_fraction` of frames is for testing and the rest for training. Test frames are never trained
on, but they come from the same recording, so the accuracy says little; a warning names the class.

**Bad files** are found by decoding every file once (`data.video.scan`), named in a warning, counted
and left out. When more than `max_bad_fraction` of the files are bad, loading fails with the list.
"""

import hashlib
import os
from collections.abc import Sequence

import ml_collections
from absl import logging

from data.batches.videos import Splits
from data.sets.protocol import clip_config
from data.video import decoding, scan
from data.video.files import FileVideos, Video, add_file_options, check_file_options, skip_bad

EXTENSIONS = (".avi", ".mp4", ".mkv", ".mov", ".webm")


def default_config() -> ml_collections.ConfigDict:
    """The fields of `config.data` for a folder of videos, with their defaults."""
    config = clip_config("video_folder")
    config.path = ""  # the folder
    config.test_fraction = 0.2  # how much of each class is for testing, without train/ and test/
    add_file_options(config)
    return config


def splits(config: ml_collections.ConfigDict, *, seed: int) -> Splits:
    """The videos below `config.path`.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if the folder has no classes, a class has no videos, too many files are bad, or a
        value of `config` is out of range.
    """
    del seed
    if not config.path:
        raise ValueError("path is empty; give the folder of videos: --config.data.path=DIR")
    if not 0 <= config.test_fraction < 1:
        raise ValueError(f"test_fraction is {config.test_fraction}; it must be from 0 to below 1")
    check_file_options(config)
    root = os.path.abspath(os.path.expanduser(config.path))
    parts = find(root)
    everything = [file for part in parts.values() for files in part.values() for file in files]
    infos = scan.scan(root, everything, config.cache_dir)
    skipped = skip_bad(root, infos, config.max_bad_fraction)
    classes = tuple(parts.get("train") or parts[""])
    videos = {
        part: _usable(root, part, by_class, classes, infos) for part, by_class in parts.items()
    }
    if "train" in videos:
        train, test = videos["train"], videos["test"]
    else:
        train, test = split(videos[""], classes, config.test_fraction)
    return Splits(
        classes,
        FileVideos(root, train, config.resize),
        FileVideos(root, test, config.resize),
        skipped,
    )


def find(root: str) -> dict[str, dict[str, list[str]]]:
    """The video files below `root`, by part and class, all sorted by name.

    Returns:
      `{"train": {class: [file, ...]}, "test": {...}}`, or `{"": {class: [file, ...]}}` for a folder
      that is not split. Files are relative to `root`.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if there is no class in it, a class without a video, or a test class that is not
        a training class.
    """
    if not os.path.isdir(root):
        kind = "is not a folder" if os.path.exists(root) else "does not exist"
        raise FileNotFoundError(f"the folder of videos {decoding.printable(root)} {kind}")
    folders, files = _children(root)
    nested = {name for name in ("train", "test") if name in folders and _has_folders(root, name)}
    if nested == {"train", "test"}:
        if others := sorted(set(folders) - nested):
            logging.warning("Using train and test of %s, not %s", root, ", ".join(others))
        parts = {part: _classes(root, part) for part in ("train", "test")}
        if unknown := sorted(set(parts["test"]) - set(parts["train"])):
            raise ValueError(
                f"{decoding.printable(root)}: test has classes that train has not: "
                f"{', '.join(map(decoding.printable, unknown))}"
            )
        return parts
    if nested:
        [there] = nested
        [other] = {"train", "test"} - nested
        raise ValueError(
            f"{decoding.printable(root)} has {there}/CLASS but no {other}/CLASS; add it, or put "
            "the classes directly into the folder to have them split"
        )
    if not folders:
        loose = [name for name in files if _is_video(name)]
        found = f"{len(loose)} videos, but not in class folders" if loose else "nothing to use"
        raise ValueError(
            f"{decoding.printable(root)} has no folders of videos ({found}); every class needs a "
            f"folder of its own, DIR/CLASS/*{'|'.join(EXTENSIONS)}"
        )
    return {"": _classes(root, "")}


def split(
    videos: Sequence[Video], classes: Sequence[str], test_fraction: float
) -> tuple[list[Video], list[Video]]:
    """Divides the videos of every class into training and test videos.

    A class with one video has that video cut in time. The seed of the run does not matter: a hash
    of the names decides.

    Args:
      videos: all of them.
      classes: the names of the classes.
      test_fraction: how much of each class is for testing, 0 <= f < 1; 0 leaves no test videos.
    """
    train, test, cut = [], [], []
    for label, name in enumerate(classes):
        members = [one for one in videos if one.label == label]
        members.sort(key=lambda member: _hash(name, os.path.basename(member.path)))
        if not test_fraction:
            num_test = 0
        else:
            num_test = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        if test_fraction and len(members) == 1:
            [only] = members
            num_frames = only.stop - only.start
            boundary = only.stop - min(max(1, round(test_fraction * num_frames)), num_frames - 1)
            train.append(only._replace(stop=boundary))
            if boundary < only.stop:
                test.append(only._replace(start=boundary))
            cut.append(name)
        else:
            test += sorted(members[:num_test])
            train += sorted(members[num_test:])
    if cut:
        logging.warning(
            "One video only in %s: it is trained on up to its last %g of frames and tested on "
            "those, which come from the same recording, so the accuracy says little",
            ", ".join(map(decoding.printable, cut)),
            test_fraction,
        )
    return train, test


def _hash(*names: str) -> str:
    return hashlib.sha256(b"\0".join(map(os.fsencode, names))).hexdigest()


def _classes(root: str, part: str) -> dict[str, list[str]]:
    """The video files of every class of one part, relative to `root`."""
    classes = {}
    for name in _children(os.path.join(root, part))[0]:
        folders, files = _children(os.path.join(root, part, name))
        videos = [os.path.join(part, name, file) for file in files if _is_video(file)]
        if not videos:
            extensions = sorted({os.path.splitext(file)[1] or file for file in files})
            holds = f"{len(files)} other files ({', '.join(extensions[:5])})" if files else ""
            holds = " and ".join(filter(None, [holds, folders and f"{len(folders)} folders"]))
            raise ValueError(
                f"the class {decoding.printable(os.path.join(root, part, name))} has no videos "
                f"({', '.join(EXTENSIONS)}); it has {holds or 'nothing in it'}"
            )
        classes[name] = videos
    return classes


def _children(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in `folder`, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        folders = sorted(entry.name for entry in shown if entry.is_dir())
        files = sorted(entry.name for entry in shown if not entry.is_dir())
    return folders, files


def _has_folders(root: str, name: str) -> bool:
    return bool(_children(os.path.join(root, name))[0])


def _is_video(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _usable(
    root: str,
    part: str,
    files_by_class: dict[str, list[str]],
    classes: Sequence[str],
    infos: dict[str, decoding.VideoInfo | decoding.BadVideo],
) -> list[Video]:
    """The good videos of one part; every class needs one."""
    videos = []
    for name, files in files_by_class.items():
        good = [file for file in files if isinstance(infos[file], decoding.VideoInfo)]
        if not good:
            raise ValueError(
                f"every video of the class {decoding.printable(os.path.join(root, part, name))} is "
                f"bad: {'; '.join(str(infos[file]) for file in files)}"
            )
        for file in good:
            num_frames, height, width = infos[file]
            path = os.path.join(root, file)
            videos.append(Video(path, classes.index(name), 0, num_frames, height, width))
    return videos
