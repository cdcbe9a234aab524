"""Files that are there completely or not at all."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAST, BEST = "checkpoints", "best"  # folders of a workdir: the newest checkpoints, and the best one


def write_atomically(file: Path, text: str) -> None:
    """Writes a file that is there completely or not at all, whenever the program is killed."""
    new = file.with_name(f".{file.name}.new")
    with open(new, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that `write_rows` wrote; none if there is no file.

    Raises:
      ValueError: for a file of another program.
    """
    if not file.exists():
        return []
    try:
        return list(json.loads(file.read_text())["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no file of this program ({error}): remove it") from error


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `{"rows": [...]}`.

    Raises:
      ValueError: for numbers that are not finite, which JSON does not have.
    """
    write_atomically(file, json.dumps({"rows": rows}, indent=1, allow_nan=False) + "\n")
