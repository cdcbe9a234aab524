"""Ctrl-C and SIGTERM at every moment of the first seconds of a program.

A program passes if it ends with 130 (143 for SIGTERM) and one line, and leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from experiments.examples import videos

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds until a program that did not end is killed
_MAIN = ["experiments/main.py", "--workdir={folder}/run",
         "--config=experiments/configs/quickstart.py"]  # fmt: skip
PROGRAMS = {
    "quickstart": _MAIN,
    "workers": [*_MAIN, "--config.data.num_workers=2"],
    "launch": ["experiments/launch.py", "--processes=2", "--logs={folder}", "--", "python",
               *_MAIN[:-1], _MAIN[-1] + ":execution=depth_sharded,depth=2"],
    "live": ["experiments/live.py", "--source={folder}/video.avi", "--repeat",
             "--out={folder}/out.mp4"],
    "table3": ["experiments/table3.py", "--sources=moving_solids", "--json={folder}/rows.json"],
}  # fmt: skip


class Settings(NamedTuple):
    """Which programs are interrupted, and when."""

    programs: tuple[str, ...]
    signals: tuple[str, ...]  # SIGINT, SIGTERM
    first: float  # seconds after the start
    last: float
    every: float  # seconds from one moment to the next


class Outcome(NamedTuple):
    """How a program ended."""

    program: str
    signal: str
    after: float  # seconds, of the signal
    status: int
    seconds: float  # from the signal to the end
    lines: list[str]  # of the standard error
    left_over: int  # processes

    @property
    def passed(self) -> bool:
        """Whether it ended as it should. A line that says "soon" may come before the last."""
        lines = [line for line in self.lines if not line.startswith("Stopping soon")]
        expected = 128 + signal.Signals[self.signal]
        said = len(lines) == 1 or (self.program == "live" and not lines)  # It says so on stdout.
        return self.status == expected and said and not self.left_over


def check(settings: Settings) -> None:
    """Raises ValueError for an unknown program or signal, or times that make no sense."""
    for program in settings.programs:
        if program not in PROGRAMS:
            raise ValueError(f"there is no program {program!r}; there are {', '.join(PROGRAMS)}")
    for name in settings.signals:
        if name not in ("SIGINT", "SIGTERM"):
            raise ValueError(f"there is no signal {name!r} here; there are SIGINT and SIGTERM")
    if settings.every <= 0 or not 0 <= settings.first <= settings.last:
        raise ValueError(
            f"from {settings.first} to {settings.last} s every {settings.every} s: times must not "
            "be negative, and `every` has to be more than 0"
        )


def run(settings: Settings, done: Collection[tuple[str, str, float]] = ()) -> Iterator[Outcome]:
    """Yields every outcome, program by program; not of the `(program, signal, after)` in `done`."""
    moments = int((settings.last - settings.first) / settings.every + 1e-6) + 1
    for program in settings.programs:
        for name in settings.signals:
            for n in range(moments):
                after = round(settings.first + n * settings.every, 3)
                if (program, name, after) not in done:
                    yield interrupt(program, name, after)


def interrupt(program: str, name: str, after: float) -> Outcome:
    """Starts a program, sends it a signal after some seconds, and waits for its end."""
    with tempfile.TemporaryDirectory() as folder:
        if program == "live":
            videos.write_video(Path(folder) / "video.avi", 0, (1, 0))
        arguments = [argument.format(folder=folder) for argument in PROGRAMS[program]]
        errors = Path(folder) / "errors"
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
            )  # fmt: skip
        time.sleep(after)
        family = [process.pid, *(child.pid for child in _descendants(process.pid))]
        sent = time.monotonic()
        process.send_signal(signal.Signals[name])
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        seconds = time.monotonic() - sent
        left_over = _left_over(family, folder)
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
        return Outcome(program, name, after, status, seconds, lines, left_over)


def row(outcomes: Sequence[Outcome]) -> dict:
    """How many passed, and the slowest end, of outcomes of one program and one signal."""
    return {
        "what": f"{outcomes[0].signal} to {outcomes[0].program}, "
                f"{outcomes[0].after:g} to {outcomes[-1].after:g} s after its start",
        "count": len(outcomes),
        "failed": sum(not outcome.passed for outcome in outcomes),
        "slowest_seconds": max(outcome.seconds for outcome in outcomes),
    }  # fmt: skip


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _left_over(family: Sequence[int], folder: str) -> int:
    """How many processes are there two seconds later; they are killed."""
    deadline = time.monotonic() + 2.0
    while left := list(_alive(family, folder)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for process in left:
        process.kill()
    return len(left)


def _alive(family: Sequence[int], folder: str) -> Iterator[psutil.Process]:
    """Those that were there, and those that came later and have the folder in their command."""
    for process in psutil.process_iter():
        try:
            known = process.pid in family or folder in " ".join(process.cmdline())
            if known and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.NoSuchProcess:
            continue
