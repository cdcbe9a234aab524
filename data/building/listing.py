"""Which videos a data set has, and which of them are for training and for testing."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from data.building import archives

Labels = tuple[int, ...]
PARTS = ("train", "test")


class ListError(ValueError):
    """A list of videos that cannot be right."""


class Split(NamedTuple):
    """One official division into training and test videos."""

    train: Mapping[str, Labels]  # by the key of the video, in the order of the list
    test: Mapping[str, Labels]
    classes: Sequence[str]


class Listing(NamedTuple):
    """All that is known before a video is opened."""

    files: Mapping[str, archives.Member]  # the videos that are there, by key
    listed: Mapping[str, Labels]  # the videos that should be, all splits together; () if a video
    # has no class of its own
    splits: Mapping[str, Split]  # by name; the first one is that of the paper


def by_key(
    members: Iterable[archives.Member], key: Callable[[str], str | None]
) -> dict[str, archives.Member]:
    """Members by what `key` makes of their names; None leaves a member out.

    A file that is both in an archive and unpacked is taken from the folder.

    Raises:
      ListError: if two files have the same key otherwise.
    """
    found = {}
    for member in members:
        name = key(member.name)
        if name is None:
            continue
        other = found.get(name)
        if other is not None and bool(other.archive) == bool(member.archive):
            raise ListError(
                f"{name} is there twice, {other.name} and {member.name}; remove one of them"
            )
        if other is None or other.archive:
            found[name] = member
    return found


def lines(member: archives.Member) -> Iterable[tuple[str, str]]:
    """Where and what: the lines of a text file that are not empty."""
    try:
        text = archives.read_text(member)
    except UnicodeDecodeError as error:
        raise ListError(f"{member.name} is not a text file ({error})") from error
    except archives.DamagedMemberError as error:
        raise ListError(f"{member.name} {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{member.name}, line {number}", line.strip()


def one(members: Mapping[str, archives.Member], name: str, hint: str) -> archives.Member:
    """The list called `name`.

    Raises:
      ListError: if it is missing; `hint` says where it comes from.
    """
    if name not in members:
        raise ListError(f"{name} is missing; {hint}")
    return members[name]


def add(part: dict[str, Labels], key: str, labels: Labels, where: str) -> None:
    """Puts a video into a part; one that is listed twice is an error."""
    if key in part:
        raise ListError(f"{where}: {key} is listed twice")
    part[key] = labels


def check(name: str, split: Split) -> Split:
    """The split, if it has training and test videos and no video in both.

    Raises:
      ListError: otherwise.
    """
    for part in PARTS:
        if not getattr(split, part):
            raise ListError(f"split {name} has no {part} videos; its list is empty")
    if both := sorted(set(split.train) & set(split.test)):
        raise ListError(
            f"split {name} has {len(both)} videos both for training and for testing: "
            f"{', '.join(both)}"
        )
    return split


def number(text: str, where: str) -> int:
    """A whole number from 0."""
    if not re.fullmatch(r"\d+", text):
        raise ListError(f"{where}: {text!r} should be a whole number")
    return int(text)
