"""The TFDS builder of CATER; README.md says what it reads."""

import dataclasses
import re
import sys
from pathlib import Path

# `tfds build data/building/cater` imports this file with `building` on the path, and not the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data.building import archives, listing
from data.building.builder import VideoBuilder, VideoConfig

_VIDEO = re.compile(r"CATER_new_\d+\.avi")
_LIST = re.compile(r"(?:^|/)lists/(?P<task>[^/\s]+)/(?P<part>train|val)\.txt$")
# The tasks of the paper of CATER: which of 14 actions, which of 301 pairs of them in time, and
# where on a grid of 6x6 the snitch ends.
_NUM_CLASSES = {"actions_present": 14, "actions_order_uniq": 301, "localize": 36}
SUBSETS = ("all_actions", "all_actions_cameramotion", "max2action", "max2action_cameramotion")


@dataclasses.dataclass
class CaterConfig(VideoConfig):
    """Which videos, and how they are stored.

    Attributes:
      subset: one of `SUBSETS`; the folder of this name in the manual_dir is read, or the
        manual_dir itself if it has none of these folders.
    """

    resize: int = 240
    subset: str = "all_actions"


class Builder(VideoBuilder, skip_registration=True):
    """CATER, one configuration for each of its four sets of videos."""

    BUILDER_CONFIGS = tuple(
        CaterConfig(name=subset, subset=subset, description="Shorter side of 240 pixels.")
        for subset in SUBSETS
    )
    HOMEPAGE = "https://rohitgirdhar.github.io/CATER/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Make a folder all_actions (or max2action, or one of these with _cameramotion) in the "
        "manual_dir, and put videos.zip and lists.zip, or the folders videos and lists, into it. "
        "Choose it with --config=all_actions."
    )
    SINGLE_LABEL = False

    def _published(self) -> dict[str, int]:
        if self.builder_config.subset != "all_actions":
            return {}
        return {"videos": 5500, "actions_present train": 3861, "actions_present test": 1639}

    def _listing(self, folder: str, scratch: str) -> listing.Listing:
        found = archives.find(
            str(_subset(Path(folder), self.builder_config.subset)),
            lambda name: bool(_key(name) or _list(name)),
            scratch,
        )
        lists = listing.by_key(found, _list)
        tasks = sorted({task for task, _ in map(str.split, lists)}, key=_by_fame)
        if not tasks:
            raise listing.ListError(
                f"there is no lists/TASK/train.txt in {folder}; it is in lists.zip of CATER"
            )
        splits = {}
        for task in tasks:
            parts = [
                _part(listing.one(lists, f"{task} {part}", f"lists/{task} has only the other"))
                for part in ("train", "val")
            ]
            highest = max(max(labels, default=-1) for part in parts for labels in part.values())
            count = _NUM_CLASSES.get(task, highest + 1)
            if highest >= count:
                raise listing.ListError(
                    f"lists/{task} has the class {highest}; {task} has {count} classes, from 0"
                )
            splits[task] = listing.check(task, listing.Split(*parts, tuple(map(str, range(count)))))
        listed = dict.fromkeys(
            [key for split in splits.values() for part in split[:2] for key in part], ()
        )
        return listing.Listing(listing.by_key(found, _key), listed, splits)


def _subset(folder: Path, subset: str) -> Path:
    if subset not in SUBSETS:
        raise ValueError(f"subset is {subset!r}; it must be one of {', '.join(SUBSETS)}")
    if (folder / subset).is_dir():
        return folder / subset
    if others := [name for name in SUBSETS if (folder / name).is_dir()]:
        raise FileNotFoundError(
            f"{folder} has no folder {subset}, but {', '.join(others)}; choose with "
            f"--config={others[0]}"
        )
    return folder


def _by_fame(task: str) -> tuple[int, str]:
    known = list(_NUM_CLASSES)
    return (known.index(task) if task in known else len(known), task)


def _key(name: str) -> str | None:
    file = name.rpartition("/")[2]
    return file[: -len(".avi")] if _VIDEO.fullmatch(file) else None


def _list(name: str) -> str | None:
    """The task and the part of a list.

    >>> _list("lists/localize/val.txt")
    'localize val'
    """
    match = _LIST.search(name)
    return f"{match['task']} {match['part']}" if match else None


def _part(member: archives.Member) -> dict[str, listing.Labels]:
    """The videos of one list: `CATER_new_000001.avi`, with `3` or `0,3,5` behind it or nothing."""
    part = {}
    for where, line in listing.lines(member):
        file, _, given = line.partition(" ")
        key = _key(file)
        if key is None:
            raise listing.ListError(f"{where}: {file!r} should be CATER_new_NNNNNN.avi")
        labels = (
            [listing.number(label.strip(), where) for label in given.split(",")] if given else []
        )
        if len(set(labels)) < len(labels):
            raise listing.ListError(f"{where}: {line!r} has a class twice")
        listing.add(part, key, tuple(labels), where)
    return part
