"""All studies by their names, the most important answers first, and what `all` does with them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.evidence.pace import Pace, duration
from experiments.evidence.study import SEARCH_SEED, Found, Scale, Study, compute, found
from experiments.workdir.files import read_rows

STUDIES = {  # by the file in experiments/evidence/studies
    "table1": "table1",
    "gradients": "gradients",
    "adaptation": "adaptation",
    "direction": "direction",
    "figure6": "figure6",
    "calibration": "calibration",
    "figures4_5": "figures4_5",
    "not_video": "not_video",
    "table3": "table3",
    "future": "future",
    "online": "online",
    "quickstart": "quickstart",
    "map": "depth_and_speed",
}
ALL_MINUTES = 180.0


class Settings(NamedTuple):
    """How much is computed; None leaves it to each study."""

    seeds: int | None = None
    updates: int | None = None
    smoke: bool = False
    videos: str = ""  # a folder
    minutes: float | None = None  # after which no run begins


def study_of(name: str) -> Study:
    """The study of this name."""
    return importlib.import_module(f"experiments.evidence.studies.{STUDIES[name]}").STUDY


def scale_of(study: Study, settings: Settings) -> Scale:
    """How much of a study is computed."""
    seeds = settings.seeds or (1 if settings.smoke else study.seeds)
    return Scale(seeds, settings.updates, settings.smoke, settings.videos)


def file_of(workdir: Path, name: str) -> Path:
    """Where the rows of a study are."""
    return workdir / f"{name}.json"


def reproduce(
    names: Sequence[str],
    workdir: Path,
    settings: Settings,
    pace_of: Callable[[float | None], Pace],
    say: Callable[[str], None],
) -> None:
    """Computes what is missing of some studies, in turn.

    Several studies share the time: each first gets its own budget, so that all have a turn, and
    what is left then goes to those that are not complete, in the same order. One study alone goes
    on to its end, or to the end of `settings.minutes`.

    Args:
      names: of `STUDIES`.
      workdir: for the rows, a file for each.
      settings: how much.
      pace_of: makes a `Pace` for so many seconds, None for any number.
      say: is told which study is next, and how many runs are missing.

    Raises:
      ValueError: for a file of another program, or videos that are not there.
    """
    whole = Pace(seconds=None if settings.minutes is None else 60 * settings.minutes)
    budgets = (True, False) if len(names) > 1 and settings.minutes is not None else (False,)
    incomplete = list(names)
    for has_budget in budgets:
        for name in list(incomplete):
            if whole.is_over():
                break
            study = study_of(name)
            scale, file = scale_of(study, settings), file_of(workdir, name)
            seconds = whole.left()
            if has_budget and seconds is not None:
                seconds = min(60 * study.minutes, seconds)
            limit = "" if seconds is None else f", at most {duration(seconds)}"
            say(f"{name}: {study.title}{limit}")
            compute(study, scale, file, pace_of(seconds))
            there = found(study, scale, read_rows(file))
            if there.complete:
                incomplete.remove(name)
            else:
                say(f"{name}: {there.missing} runs or more are missing")


def rows_of(workdir: Path, name: str, settings: Settings) -> Found:
    """What of a study is there.

    As many seeds and the folder of videos that the file has, where they are not given.

    Raises:
      ValueError: for a file of another program.
    """
    rows, study = read_rows(file_of(workdir, name)), study_of(name)
    if not rows:
        return Found([], 0, complete=False)
    scale = scale_of(study, settings)
    if settings.seeds is None and not settings.smoke:
        last = max((row["seed"] for row in rows if row["seed"] < SEARCH_SEED), default=0)
        scale = scale._replace(seeds=max(scale.seeds, last + 1))
    if not scale.videos:
        scale = scale._replace(videos=next((r["videos"] for r in rows if r.get("videos")), ""))
    return found(study, scale, rows)
