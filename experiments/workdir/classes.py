"""The names of the classes, in the workdir: what the outputs of a network mean."""

import json
from pathlib import Path
from typing import NamedTuple

from experiments.workdir.files import write_atomically

NAME = "classes.json"


class Classes(NamedTuple):
    """Of a data set."""

    names: tuple[str, ...] = ()  # in the order of the labels
    multi_label: bool = False  # whether a video may have several


def write(classes: Classes, workdir: Path) -> None:
    """Writes them; of a job without classes nothing."""
    if classes.names:
        write_atomically(workdir / NAME, json.dumps(classes._asdict(), indent=1) + "\n")


def read(workdir: Path) -> Classes:
    """The classes that a run wrote.

    Raises:
      ValueError: if there are none, or the file is damaged.
    """
    file = workdir / NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Classes(tuple(map(str, found["names"])), bool(found["multi_label"]))
    except FileNotFoundError as error:
        raise ValueError(
            f"{workdir} does not hold the names of its classes: a version of before 2026-11-22 "
            f"made it. Run its experiments/main.py once more, with the same config: that writes "
            f"{NAME}, and a finished run is trained no further"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); experiments/main.py with the same config writes it anew"
        ) from error
