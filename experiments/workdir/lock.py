"""One run at a time in a workdir.

The lock is a file that names its process: host, number, and when it was started, because numbers
are used again. A lock whose process is gone, as a killed run leaves it, does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

NAME = ".lock"
_SECONDS = 2.0  # by which the start of a process may differ when the clock is set


class LockedError(ValueError):
    """Another run is at work in the workdir."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of the workdir, which is made if need be.

    Raises:
      LockedError: if one is at work there; the message has its host and number.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / NAME
    mine = workdir / f"{NAME}.{socket.gethostname()}.{os.getpid()}"
    mine.write_text(json.dumps(_this_process()), encoding="utf-8")
    try:
        _take(mine, file)
    finally:
        mine.unlink()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def check(workdir: Path) -> None:
    """Raises LockedError if another run is at work there; takes nothing."""
    holder = _read(workdir / NAME)
    if holder is not None and _is_alive(holder):
        raise LockedError(_message(workdir / NAME, holder))


def _take(mine: Path, file: Path) -> None:
    for _ in range(10):  # Others may take it, or leave it, at the same time.
        try:
            os.link(mine, file)  # All of the file or none, and only if there is none.
            return
        except FileExistsError:
            check(file.parent)
            # Moved and not removed: of two runs that find the same stale lock, one has it.
            with contextlib.suppress(FileNotFoundError):
                stale = mine.with_suffix(".stale")
                file.rename(stale)
                stale.unlink()
    raise LockedError(f"{file} cannot be had: others take it all the time")


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "command": " ".join(process.cmdline())[:500],
    }


def _read(file: Path) -> dict[str, Any] | None:
    """The process that holds the lock; None without a lock, or for one that says nothing."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return holder if {"host", "pid", "started"} <= holder.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process that is named still runs. Of another host nothing can be known: yes."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        process = psutil.Process(holder["pid"])
        same = abs(process.create_time() - holder["started"]) < _SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _message(file: Path, holder: dict[str, Any]) -> str:
    there = holder["host"] != socket.gethostname()
    return (
        f"another run is at work in {file.parent}: process {holder['pid']} on {holder['host']}. "
        "Wait for its end, or use another workdir"
        + (f"; if it is gone, remove {file}" if there else "")
    )
