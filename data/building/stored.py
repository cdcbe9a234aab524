"""What a builder stored: finds a build on the disk and reads its metadata, without TFDS."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_data_source

# Of the metadata. Goes up when old builds can no longer be read.
FORMAT = 1
DEFAULT_PATH = "~/tensorflow_datasets"  # TFDS's own default


class Entry(NamedTuple):
    """One stored video."""

    key: str  # its name in the official lists
    num_frames: int
    height: int  # as stored, pixels
    width: int


class Build(NamedTuple):
    """A build: the metadata of all its videos."""

    folder: str
    videos: tuple[Entry, ...]  # in the order of the records
    splits: dict[str, dict[str, Any]]  # "classes", and "train" and "test": [[number, labels], ...]
    excluded: tuple[tuple[str, str], ...]  # key and reason
    unlisted: tuple[str, ...]  # keys of videos that are in no list; they are not stored


def read_build(name: str, path: str, variant: str) -> Build:
    """Reads the newest version of a build.

    Args:
      name: of the data set.
      path: the --data_dir of the build; empty for `DEFAULT_PATH`.
      variant: the configuration of the builder.

    Raises:
      FileNotFoundError: if there is no such build.
      ValueError: if it is damaged, or has the format of another version of this library.
    """
    root = Path(path or DEFAULT_PATH).expanduser()
    folder = root / name / variant
    versions = [
        (tuple(map(int, version.name.split("."))), version)
        for version in (folder.iterdir() if folder.is_dir() else ())
        if version.name.replace(".", "").isdigit()
    ]
    if not versions:
        others = [path.parent.parent.name for path in (root / name).glob("*/*/metadata.json")
                  if path.parent.name.replace(".", "").isdigit()]  # fmt: skip
        raise FileNotFoundError(
            f"{name} has not been built in {root}"
            + (f" as {variant}, but as {', '.join(sorted(set(others)))}" if others else "")
            + f"; build it with: python experiments/build_data.py {name} --config={variant} "
            f"--data_dir={root} --manual_dir=DOWNLOADS, or give its folder: --config.data.path=DIR"
        )
    [_, folder] = max(versions)
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is damaged: metadata.json cannot be read ({error}); remove it and build it "
            "again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has the format {metadata.get('format')}, this version reads {FORMAT}; "
            "remove it and build it again"
        )
    build = Build(
        str(folder),
        tuple(Entry(*video) for part in metadata["videos"].values() for video in part),
        metadata["splits"],
        tuple(metadata["excluded"].items()),
        tuple(metadata["unlisted"]),
    )
    stored = len(array_record_data_source.ArrayRecordDataSource(shard_files(build.folder)))
    if stored != len(build.videos):
        raise ValueError(
            f"{folder} has {stored} records, and should have {len(build.videos)}; remove it and "
            "build again"
        )
    return build


def shard_files(folder: str) -> list[str]:
    """The files of a build that hold its records, in the order of the metadata: train, test, rest.

    Raises:
      ValueError: if there are none.
    """
    found = []
    for part in ("train", "test", "rest"):
        found += sorted(map(os.fspath, Path(folder).glob(f"*-{part}.array_record-*")))
    if not found:
        raise ValueError(f"{folder} is damaged: it has no *.array_record-*; build it again")
    return found
