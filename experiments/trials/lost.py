"""One of two or three processes is killed, or stopped: the others have to end within a minute."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from experiments.trials import small

COUNTS = 2, 3  # processes of a run
SIGNALS = signal.SIGKILL, signal.SIGSTOP
SECONDS = 60.0


def run(numbers: range, folder: Path) -> Iterator[dict]:
    """Yields the outcome of every trial; counts, signals and processes take turns."""
    for number in numbers:
        count, name = COUNTS[number % 2], SIGNALS[number // 2 % 2]
        victim = number // 4 % count
        workdir = folder / f"lost-{number}"
        shutil.rmtree(workdir, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = small.command(workdir, "processes", count, train__num_steps=100_000)
        process = small.start(command, folder / f"lost-{number}.log")
        seconds = _lose_one(process, workdir, victim, count, name, random.Random(number))
        for one in small.family(process):
            one.kill()
        process.wait()
        shutil.rmtree(workdir)
        yield {
            "number": number, "process": f"{victim} of {count}",
            "signal": signal.Signals(name).name,
            "seconds": seconds, "failed": seconds is None or seconds > SECONDS,
        }  # fmt: skip


def _lose_one(
    process, workdir: Path, victim: int, count: int, name: int, moment: random.Random
) -> float | None:
    """Seconds until the others have ended; None if they did not, or the run never began."""
    deadline = time.monotonic() + 300
    while not any(workdir.glob("checkpoints/[0-9]")) and time.monotonic() < deadline:
        if process.poll() is not None:
            return None
        time.sleep(0.05)
    time.sleep(moment.uniform(0, 2))
    trainers = {number: one for one in small.family(process) for number in range(count)
                if f"--process_id={number}" in one.cmdline()}  # fmt: skip
    if len(trainers) < count:
        return None
    start = time.monotonic()
    trainers.pop(victim).send_signal(name)
    _, left = psutil.wait_procs(trainers.values(), timeout=2 * SECONDS)
    return None if left else time.monotonic() - start
