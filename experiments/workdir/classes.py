"""The names of the classes, in the workdir: what the outputs of a network mean."""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.workdir.files import write_atomically

NAME = "classes.json"


def write(names: Sequence[str], workdir: Path) -> None:
    """Writes the names in the order of the labels; of a job without classes nothing."""
    if names:
        write_atomically(workdir / NAME, json.dumps(list(names), indent=1) + "\n")


def read(workdir: Path) -> tuple[str, ...]:
    """The names that a run wrote.

    Raises:
      ValueError: if there are none, or the file is damaged.
    """
    file = workdir / NAME
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{workdir} does not hold the names of its classes: a version of before 2026-11-22 "
            f"made it. Run its experiments/main.py once more, with the same config: that writes "
            f"{NAME}, and a finished run is trained no further"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); see experiments/main.py") from error
    return tuple(names)
