"""Checksums of the files of a folder: what was damaged since they were written has a name."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from experiments.workdir.files import write_atomically

_FILE = "checksums.json"
_BLOCK = 2**20  # bytes


def write(folder: Path) -> None:
    """Writes the checksums of all files into the folder."""
    sums = {str(file.relative_to(folder)): _checksum(file) for file in _files(folder)}
    write_atomically(folder / _FILE, json.dumps(sums, indent=1) + "\n")


def written(folder: Path) -> bool:
    """Whether there are checksums."""
    return (folder / _FILE).exists()


def damage(folder: Path) -> str | None:
    """What is wrong with the first file that is missing or not as it was; None if all are whole.

    Without checksums there is nothing to compare with, and nothing wrong.
    """
    if not written(folder):
        return None
    try:
        sums = dict(json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except ValueError as error:
        return f"{folder / _FILE} is damaged ({error})"
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        size, crc = _checksum(file)
        if size != expected[0]:
            return f"{file} is damaged ({size} bytes, {expected[0]} were written)"
        if crc != expected[1]:
            return f"{file} is damaged (its checksum is another)"
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _FILE)


def _checksum(file: Path) -> list[int]:
    """`[bytes, CRC-32]`."""
    crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
        return [stream.tell(), crc]
