"""The TFDS builder of UCF101; README.md says what it reads."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

# `tfds build data/building/ucf101` imports this file with `building` on the path, and not the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data.building import archives, listing
from data.building.builder import VideoBuilder, VideoConfig

_VIDEO = re.compile(r"v_(?P<name>\w+)_g\d+_c\d+\.avi", re.IGNORECASE)
_LISTS = ("classInd.txt", *(f"{part}list0{n}.txt" for part in listing.PARTS for n in (1, 2, 3)))
_HINT = (
    "it is in UCF101TrainTestSplits-RecognitionTask.zip of "
    "https://www.crcv.ucf.edu/data/UCF101.php; put that, or the folder ucfTrainTestlist, into the "
    "manual_dir"
)


class Builder(VideoBuilder, skip_registration=True):
    """UCF101, splits 1 to 3."""

    BUILDER_CONFIGS = (VideoConfig(name="side_128", description="Shorter side of 128 pixels."),)
    HOMEPAGE = "https://www.crcv.ucf.edu/data/UCF101.php"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put UCF101.rar, or the flat zip of THUMOS14, or the folder UCF-101, and "
        "UCF101TrainTestSplits-RecognitionTask.zip, or the folder ucfTrainTestlist, into the "
        "manual_dir."
    )

    def _listing(self, folder: str, scratch: str) -> listing.Listing:
        found = archives.find(folder, lambda name: bool(_key(name) or _list(name)), scratch)
        lists = listing.by_key(found, _list)
        classes = _classes(listing.one(lists, "classInd.txt", _HINT))
        splits = {}
        for number in (1, 2, 3):
            names = [f"{part}list0{number}.txt" for part in listing.PARTS]
            if number > 1 and not any(name in lists for name in names):
                continue  # only split 1 has to be there
            parts = [_part(listing.one(lists, name, _HINT), classes) for name in names]
            splits[str(number)] = listing.check(
                str(number), listing.Split(*parts, tuple(classes.values()))
            )
        listed = {}
        for split in splits.values():
            listed |= split.train | split.test
        return listing.Listing(listing.by_key(found, _key), listed, splits)

    def _published(self) -> dict[str, int]:
        return {
            "videos": 13320,
            **{"1 train": 9537, "1 test": 3783},
            **{"2 train": 9586, "2 test": 3734},
            **{"3 train": 9624, "3 test": 3696},
        }


def _key(name: str) -> str | None:
    """What identifies a video: its file name, whatever folder it is in.

    Files of the class HandstandPushups say HandStandPushups, some of the time.

    >>> _key("UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi")
    'v_handstandpushups_g01_c01'
    """
    file = name.rpartition("/")[2]
    return file[: -len(".avi")].lower() if _VIDEO.fullmatch(file) else None


def _list(name: str) -> str | None:
    file = name.rpartition("/")[2]
    return file if file in _LISTS else None


def _classes(member: archives.Member) -> dict[str, str]:
    """Names of the classes by their names in lower case, in the order of the labels."""
    classes = {}
    for where, line in listing.lines(member):
        number, _, name = line.partition(" ")
        if listing.number(number, where) != len(classes) + 1 or not name.strip():
            raise listing.ListError(f"{where}: {line!r} should be '{len(classes) + 1} CLASS'")
        if name.strip().lower() in classes:
            raise listing.ListError(f"{where}: the class {name.strip()} is listed twice")
        classes[name.strip().lower()] = name.strip()
    return classes


def _part(member: archives.Member, classes: Mapping[str, str]) -> dict[str, listing.Labels]:
    """The videos of one list: `CLASS/v_CLASS_g01_c01.avi`, in training lists with the class."""
    part, labels = {}, {name: label for label, name in enumerate(classes)}
    for where, line in listing.lines(member):
        path, _, given = line.partition(" ")
        folder, _, file = path.rpartition("/")
        key = _key(file)
        if not folder or key is None:
            raise listing.ListError(f"{where}: {path!r} should be CLASS/v_CLASS_gNN_cNN.avi")
        label = labels.get(folder.lower())
        if label is None or _VIDEO.fullmatch(file)["name"].lower() not in labels:
            raise listing.ListError(
                f"{where}: the class of {path} is not one of the {len(classes)} in classInd.txt"
            )
        if _VIDEO.fullmatch(file)["name"].lower() != folder.lower():
            raise listing.ListError(f"{where}: {path} is in the folder of another class")
        if given and listing.number(given.strip(), where) != label + 1:
            raise listing.ListError(
                f"{where}: {path} has the class {given.strip()}, but classInd.txt gives {folder} "
                f"the number {label + 1}"
            )
        listing.add(part, key, (label,), where)
    return part
