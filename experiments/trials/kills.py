"""SIGKILL at random moments of a training run; it has to end as one that was never disturbed.

A trial is a run that is killed `KILLS` times and then finished. Checkpoints are made at every step,
so that many kills come inside of one.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from experiments.trials import small

# In turn; two processes take several times as long as one.
VARIANTS = "plain", "workers", "processes", "plain", "workers"
KILLS = 5  # of a trial
LEFT_SECONDS = 60.0  # in which processes that have lost the one that was killed have to end


def run(numbers: range, folder: Path, variants: Sequence[str] = VARIANTS) -> Iterator[dict]:
    """Yields the outcome of every trial.

    Args:
      numbers: of the trials; the same number is killed after the same times.
      folder: for the runs that are compared with, which are kept.
      variants: which take turns.
    """
    for number in numbers:
        variant = variants[number % len(variants)]
        yield {"number": number, "variant": variant, **_trial(number, variant, folder)}


def undisturbed(variant: str, folder: Path) -> small.Left:
    """The same run without a kill; workers change nothing."""
    name = "processes" if variant == "processes" else "plain"
    workdir = folder / f"undisturbed-{name}"
    if not (workdir / "summary.json").exists():
        shutil.rmtree(workdir, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        status = small.to_its_end(small.command(workdir, name), folder / f"{name}.log")
        if status != 0:
            raise ValueError(f"the undisturbed run ended with {status}: see {folder}/{name}.log")
    return small.left_by(workdir)


def _trial(number: int, variant: str, folder: Path) -> dict:
    expected = undisturbed(variant, folder)
    random_moment = random.Random(number)
    name = f"kills-{variant}-{number}"
    workdir, log = folder / name, folder / f"{name}.log"
    shutil.rmtree(workdir, ignore_errors=True)
    log.unlink(missing_ok=True)
    inside_saves = left_over = kills = 0
    for _ in range(KILLS):
        process = small.start(small.command(workdir, variant), log)
        _until_it_saves(process, workdir, random_moment)
        if process.poll() is not None:
            break  # It has come to its end.
        left_over += _kill(process, variant, random_moment)
        kills += 1
        inside_saves += _is_saving(workdir)
    status = small.to_its_end(small.command(workdir, variant), log)
    said = log.read_text(errors="replace")
    same = status == 0 and small.left_by(workdir) == expected
    outcome = {
        "kills": kills,
        "inside_saves": inside_saves,
        "damaged": said.count("Going back from step") + said.count("no checkpoint is whole"),
        "left_over": left_over,
        "status": status,
        "bit_exact": same,
        "failed": not same or bool(left_over) or "Going back" in said,
    }
    if not outcome["failed"]:
        shutil.rmtree(workdir)
        shutil.rmtree(f"{workdir}.logs", ignore_errors=True)
        log.unlink()
    return outcome


def _until_it_saves(process, workdir: Path, random_moment: random.Random) -> None:
    """Waits for a moment of the start, of a save, or after one: in 1, 2 and 2 of 5 cases."""
    kind = random_moment.random()
    if kind < 0.2:
        time.sleep(random_moment.uniform(0, 8))
        return
    before, deadline = small.newest(workdir), time.monotonic() + small.PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if _is_saving(workdir) if kind < 0.6 else small.newest(workdir) != before:
            break
        time.sleep(0.005)
    time.sleep(random_moment.uniform(0, 0.2 if kind < 0.6 else 1.0))


def _is_saving(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def _kill(process, variant: str, random_moment: random.Random) -> int:
    """Kills the run, or one of two processes; gives how many are left when time is up."""
    family = small.family(process)
    trainers = [one for one in family if "--process_id" in " ".join(_command(one))]
    victims = [process]
    if variant == "processes" and trainers:
        victims = [random_moment.choice(trainers)]
        if random_moment.random() < 0.5:  # As when the machine goes down.
            victims = family
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    left = small.kill_left(process, family, LEFT_SECONDS)
    process.wait()
    return left


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
