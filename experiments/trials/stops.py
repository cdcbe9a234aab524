"""Ctrl-C and SIGTERM while a run trains: it is saved within `SECONDS`, or says why not, and ends.

A step takes milliseconds here, so that this is the time to agree and to save.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.trials import small

VARIANTS = "plain", "workers", "processes"
SIGNALS = signal.SIGTERM, signal.SIGINT
SECONDS = 10.0
LEFT_SECONDS = 5.0  # in which what it started has to end, too
_SAVED = re.compile(r"Stopped at step (\d+) of \d+, and saved\.")
# Nothing is saved but for the signal.
_FIELDS = {"train__num_steps": 100_000, "train__checkpoint_every": 0, "train__eval_every": 0}


def run(numbers: range, folder: Path) -> Iterator[dict]:
    """Yields the outcome of every trial; variants and signals take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        variant, name = VARIANTS[number % 3], SIGNALS[number // 3 % 2]
        workdir = folder / f"stops-{number}"
        files = [Path(f"{workdir}{suffix}") for suffix in (".log", ".errors", ".logs")]
        for path in (workdir, *files):
            _remove(path)
        outcome = _trial(workdir, variant, name, files, random.Random(number))
        yield {
            "number": number, "variant": variant, "signal": signal.Signals(name).name, **outcome
        }  # fmt: skip
        if not outcome["failed"]:
            for path in (workdir, *files):
                _remove(path)


def _trial(
    workdir: Path, variant: str, name: int, files: list[Path], moment: random.Random
) -> dict:
    log, errors, _ = files
    process = small.start(small.command(workdir, variant, **_FIELDS), log, errors)
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + small.PATIENCE
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        if process.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(moment.uniform(0, 5))
    family, sent, sent_at = small.family(process), time.monotonic(), time.time()
    process.send_signal(name)
    try:
        status = process.wait(6 * SECONDS)
    except subprocess.TimeoutExpired:
        status = None
    seconds = time.monotonic() - sent
    left = small.kill_left(process, family, LEFT_SECONDS)
    process.wait()
    lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    said = _SAVED.search(lines[-1]) if lines else None
    # The last file of a checkpoint.
    file = workdir / "checkpoints" / (said[1] if said else "none") / "checksums.json"
    saved_seconds = file.stat().st_mtime - sent_at if file.exists() else None
    passed = saved_seconds is not None and (
        saved_seconds <= SECONDS or any("Not saved" in line for line in lines)
    )
    return {
        "status": status, "seconds": seconds, "saved_seconds": saved_seconds, "lines": lines,
        "left_over": left, "failed": not (passed and status == 128 + name and not left),
    }  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
