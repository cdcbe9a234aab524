"""The TFDS builder of HMDB51; README.md says what it reads."""

import re
import sys
from pathlib import Path

# `tfds build data/building/hmdb51` imports this file with `building` on the path, and not the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data.building import archives, listing
from data.building.builder import VideoBuilder, VideoConfig

_LIST = re.compile(r"(?P<name>.+)_test_split(?P<number>[123])\.txt")
_TAGS = {"0": None, "1": "train", "2": "test"}
_HINT = (
    "the lists are in test_train_splits.rar of https://serre-lab.clps.brown.edu/resource/"
    "hmdb-a-large-human-motion-database/; put that, or the folder testTrainMulti_7030_splits, into "
    "the manual_dir"
)


class Builder(VideoBuilder, skip_registration=True):
    """HMDB51, splits 1 to 3."""

    BUILDER_CONFIGS = (VideoConfig(name="side_128", description="Shorter side of 128 pixels."),)
    HOMEPAGE = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put hmdb51_org.rar, or a folder with its 51 archives or with what is in them, and "
        "test_train_splits.rar, or the folder testTrainMulti_7030_splits, into the manual_dir."
    )

    def _listing(self, folder: str, scratch: str) -> listing.Listing:
        found = archives.find(folder, lambda name: bool(_key(name) or _list(name)), scratch)
        lists = listing.by_key(found, _list)
        if not lists:
            raise listing.ListError(f"there is no CLASS_test_split1.txt; {_HINT}")
        classes = sorted({_LIST.fullmatch(name)["name"] for name in lists})
        splits = {}
        listed: dict[str, listing.Labels] = {}
        for number in (1, 2, 3):
            names = [f"{name}_test_split{number}.txt" for name in classes]
            if number > 1 and not any(name in lists for name in names):
                continue  # only split 1 has to be there
            parts: dict[str, dict[str, listing.Labels]] = {"train": {}, "test": {}}
            for label, (of_class, name) in enumerate(zip(classes, names, strict=True)):
                member = listing.one(lists, name, _HINT)
                for key, part in _tags(member, of_class).items():
                    listed[key] = (label,)
                    if part:
                        parts[part][key] = (label,)
            splits[str(number)] = listing.check(
                str(number), listing.Split(parts["train"], parts["test"], classes)
            )
        return listing.Listing(listing.by_key(found, _key), listed, splits)

    def _published(self) -> dict[str, int]:
        counts = {"videos": 6766}
        for number in (1, 2, 3):
            counts |= {f"{number} train": 3570, f"{number} test": 1530}
        return counts


def _key(name: str) -> str | None:
    """What identifies a video: its class and its name, as names alone are there twice.

    >>> _key("hmdb51_org/brush_hair/brush_hair/a(b)!&c;.avi")
    'brush_hair/a(b)!&c;'
    """
    folder, _, file = name.rpartition("/")
    if not file.lower().endswith(".avi") or not folder:
        return None
    return f"{folder.rpartition('/')[2]}/{file[: -len('.avi')]}"


def _list(name: str) -> str | None:
    file = name.rpartition("/")[2]
    return file if _LIST.fullmatch(file) else None


def _tags(member: archives.Member, of_class: str) -> dict[str, str | None]:
    """The part of every video of a list: `NAME.avi TAG`, 1 to train, 2 to test, 0 for neither."""
    tags = {}
    for where, line in listing.lines(member):
        file, _, tag = line.rpartition(" ")
        if tag not in _TAGS or not file.strip().lower().endswith(".avi"):
            raise listing.ListError(
                f"{where}: {line!r} should be 'NAME.avi TAG' with the tag 0, 1 or 2"
            )
        key = f"{of_class}/{file.strip()[: -len('.avi')]}"
        listing.add(tags, key, _TAGS[tag], where)
    if not tags:
        raise listing.ListError(f"{member.name} is empty")
    return tags
