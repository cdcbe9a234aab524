"""The names of the classes, in the workdir: what the outputs of a network mean."""

import contextlib
import json
from collections.abc import Iterator
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


@contextlib.contextmanager
def explained(classes: Classes, workdir: Path) -> Iterator[None]:
    """Around what goes on with the run of a workdir: says first if its classes are others.

    What fails then is something else, the shape of a parameter, that tells a user little.

    Raises:
      ValueError: in the place of one that is raised inside.
    """
    try:
        yield
    except ValueError as error:
        try:
            there = read(workdir)
        except ValueError:  # No names, or damaged ones: they explain nothing.
            raise error from None
        if there == classes:
            raise
        raise ValueError(
            f"{workdir} was trained on other classes ({_difference(there, classes)}), so training "
            "cannot go on. Set the videos back, or use another workdir: with "
            f"--config.init_from={workdir} it starts from what was learned here"
        ) from error


def _difference(there: Classes, here: Classes) -> str:
    """What is new and what is gone.

    >>> _difference(Classes(("running", "jumping")), Classes(("running", "rowing")))
    "new: 'rowing'; gone: 'jumping'"
    """
    new = [name for name in here.names if name not in there.names]
    gone = [name for name in there.names if name not in here.names]
    parts = [
        f"{what}: {', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
        for what, names in (("new", new), ("gone", gone))
        if names
    ]
    return "; ".join(parts) or "the same names in another order"


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
