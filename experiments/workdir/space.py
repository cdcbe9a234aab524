"""A disk that is full: which, how much is needed, and how much is free."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEXTS = tuple(os.strerror(number) for number in _ERRNOS)  # TensorStore and FFmpeg pass them on.


@contextlib.contextmanager
def explained(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Turns what libraries raise when a disk is full into one OSError that says so.

    Args:
      folder: that is written into.
      needed: tells the bytes of the largest that is written, a checkpoint.
    """
    # Several tasks of Orbax fail at once, and it looks at one: asyncio logs the others' tracebacks.
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        raise OSError(
            f"there is no space left in {folder}: a checkpoint takes about {_megabytes(needed())}, "
            f"{_megabytes(free)} are free. Make room, and run the same command again to go on from "
            "the last checkpoint"
        ) from error
    logger.setLevel(level)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk, a quota or a file is full."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _ERRNOS:
            return True
        if any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _megabytes(size: int) -> str:
    """Bytes for people.

    >>> _megabytes(1_234_567)
    '1.23 MB'
    """
    return f"{size / 1e6:.3g} MB"
