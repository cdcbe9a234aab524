"""Files that are there completely or not at all."""

import os
from pathlib import Path

LAST, BEST = "checkpoints", "best"  # folders of a workdir: the newest checkpoints, and the best one


def write_atomically(file: Path, text: str) -> None:
    """Writes a file that is there completely or not at all, whenever the program is killed."""
    new = file.with_name(f".{file.name}.new")
    with open(new, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)
