"""A disk that runs full at a random moment of a training run, and has room again afterwards.

The run has to end with one line, and the same command has to come to what an undisturbed run comes
to. The workdir is on a small file system of its own, which only root can mount.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.trials import kills, small

MEGABYTES = 8  # of the file system; a checkpoint takes less than one
_BLOCK = 4096  # bytes


def run(numbers: range, folder: Path) -> Iterator[dict]:
    """Yields the outcome of every trial.

    Args:
      numbers: of the trials; the same number fills the disk at the same moment.
      folder: for the run that is compared with, and for the file systems.

    Raises:
      ValueError: if a file system cannot be mounted.
    """
    expected = kills.undisturbed("plain", folder)
    for number in numbers:
        with _disk(folder / f"disk-{number}") as disk:
            outcome = _trial(random.Random(number), disk, expected)
            if outcome["failed"]:
                shutil.copytree(disk, folder / f"disk-{number}-failed", dirs_exist_ok=True)
        yield {"number": number, **outcome}


def _trial(moment: random.Random, disk: Path, expected: small.Left) -> dict:
    workdir = disk / "run"
    log, errors = (disk.with_suffix(suffix) for suffix in (".log", ".errors"))
    for file in (log, errors):
        file.unlink(missing_ok=True)
    process = small.start(small.command(workdir), log, errors)
    _wait(process, workdir, moment)
    step, left = small.newest(workdir), moment.randrange(0, 64) * _BLOCK
    status = _keep_full(process, disk, left)
    lines = errors.read_text(errors="replace").splitlines()
    (disk / "ballast").unlink()
    again = small.to_its_end(small.command(workdir), log, errors)
    same = again == 0 and small.left_by(workdir) == expected
    return {
        "step": step,
        "left_bytes": left,
        "was_full": int(status == 1),
        "status": status,
        "lines": lines,
        "damaged": log.read_text(errors="replace").count("Going back from step"),
        "bit_exact": same,
        # With much left the run may have come to its end.
        "failed": not same or not (status == 0 or (status == 1 and _is_said(lines, workdir))),
    }


def _is_said(lines: list[str], workdir: Path) -> bool:
    return len(lines) == 1 and lines[0].startswith(f"Error: there is no space left in {workdir}")


def _wait(process: subprocess.Popen, workdir: Path, moment: random.Random) -> None:
    """Waits: in one of five cases for a moment of the start, else for one between two saves."""
    if moment.random() < 0.2:
        time.sleep(moment.uniform(0, 8))
        return
    step = moment.randrange(1, small.STEPS - 10)
    deadline = time.monotonic() + small.PATIENCE
    while small.newest(workdir) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(moment.uniform(0, 0.3))


def _keep_full(process: subprocess.Popen, disk: Path, left: int) -> int | None:
    """Takes all but `left` bytes until the run ends; its exit status, None if it had to be killed.

    What is removed meanwhile, such as old checkpoints, is taken, too.
    """
    deadline = time.monotonic() + small.PATIENCE
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                while shutil.disk_usage(disk).free > left:
                    ballast.write(bytes(_BLOCK))
            time.sleep(0.01)
    if process.poll() is None:
        process.kill()
        process.wait()
        return None
    return process.returncode


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A small file system, mounted there meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0:
        raise ValueError("a small file system takes Linux, and root to mount it")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
