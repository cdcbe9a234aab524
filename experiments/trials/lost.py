"""One of two processes is killed, or stopped: the other has to end within a minute."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from experiments.trials import small

SIGNALS = signal.SIGKILL, signal.SIGSTOP
SECONDS = 60.0


def run(numbers: range, folder: Path) -> Iterator[dict]:
    """Yields the outcome of every trial; processes and signals take turns."""
    for number in numbers:
        victim, name = number % 2, SIGNALS[number // 2 % 2]
        workdir = folder / f"lost-{number}"
        shutil.rmtree(workdir, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = small.command(workdir, "processes", train__num_steps=100_000)
        process = small.start(command, folder / f"lost-{number}.log")
        seconds = _lose_one(process, workdir, victim, name, random.Random(number))
        for one in small.family(process):
            one.kill()
        process.wait()
        shutil.rmtree(workdir)
        yield {
            "number": number, "process": victim, "signal": signal.Signals(name).name,
            "seconds": seconds, "failed": seconds is None or seconds > SECONDS,
        }  # fmt: skip


def _lose_one(
    process, workdir: Path, victim: int, name: int, moment: random.Random
) -> float | None:
    """Seconds until the other has ended; None if it did not, or the run never began."""
    deadline = time.monotonic() + 300
    while not any(workdir.glob("checkpoints/[0-9]")) and time.monotonic() < deadline:
        if process.poll() is not None:
            return None
        time.sleep(0.05)
    time.sleep(moment.uniform(0, 2))
    trainers = {number: one for one in small.family(process) for number in (0, 1)
                if f"--process_id={number}" in one.cmdline()}  # fmt: skip
    if len(trainers) < 2:
        return None
    start = time.monotonic()
    trainers[victim].send_signal(name)
    try:
        trainers[1 - victim].wait(2 * SECONDS)
    except psutil.TimeoutExpired:
        return None
    return time.monotonic() - start
