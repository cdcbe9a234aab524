"""A folder of videos, one subfolder for each class.

    DIR/CLASS/*.mp4|avi|...                          split into training and test videos here
    DIR/train/CLASS/..., DIR/test/CLASS/...          split already

The second form is taken when DIR has folders `train` and `test` with folders in them.

**Which files are videos** their extensions say, `data.video.decoding.EXTENSIONS`, in upper or lower
case. Other files and deeper folders are left alone, and counted in a warning; hidden ones are not
counted.

**The split** of the first form is made class by class and depends on the names of the files alone,
not on the seed: `test_fraction` of the videos of a class, rounded, but at least one and not all,
are test videos. Which ones is decided by a hash of class and name. If several clips were cut from
one recording, split them yourself: a random split puts near copies of test videos into training.

**A class with one video** cannot be split that way. The video is cut in time instead: its last
`test_fraction` of frames is for testing and the rest for training. Test frames are never trained
on, but they come from the same recording, so the accuracy says little; a warning names the class.

**A stride is time.** Files whose rate of frames varies, as those of phones and GIFs, are taken at
their mean rate: a frame that is held comes several times (`data.video.timing`).

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
from data.video import class_folders, decoding, scan, timing
from data.video.files import FileVideos, Video, add_file_options, check_file_options, skip_bad


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
    parts = class_folders.find(root)
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
            num_frames, height, width, times = infos[file]
            path, shown = os.path.join(root, file), timing.shown(times)
            videos.append(Video(path, classes.index(name), 0, num_frames, height, width, shown))
    return videos
