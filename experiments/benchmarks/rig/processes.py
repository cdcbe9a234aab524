"""Measuring several devices on a CPU: every device is a process with cores of its own."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from experiments.benchmarks.rig import measure, turns
from experiments.benchmarks.rig.measure import ratio
from experiments.benchmarks.rig.suite import Dtype
from experiments.processes.children import usable_cores

PIPELINES = ("depth_sharded", "program_per_device")
BLOCKING = "backprop blocking "  # and one of these: what it is compared with
CLIPS = ("model", "frames", "batch", "size", "dtype")
ROOT = Path(__file__).resolve().parents[3]


class Settings(NamedTuple):
    """Settings of a suite that starts workers; `suite.HELP` explains them."""

    model: str = "simple_cnn"
    frames: int = 64
    batch: int = 8
    size: int = 32
    dtype: Dtype = "float32"
    devices: tuple[int, ...] = (2,)
    forced: bool = False
    rounds: int = 9


def clips_of(settings: Any) -> dict[str, Any]:
    """The settings of the clips and the network, for workers and rows."""
    return {name: getattr(settings, name) for name in CLIPS}


def check(devices: int, *, forced: bool) -> None:
    """Raises ValueError if there are fewer cores than processes."""
    cores = usable_cores()
    if not forced and devices > cores:
        raise ValueError(
            f"{devices} devices need a process with a core each, there are {cores} cores: "
            "lower --devices, or give --forced for devices that share them (which shows that it "
            "works, not how fast)"
        )


@contextmanager
def teams(
    devices: int, *, forced: bool, kind: str, reference: Path | None = None, **clips: Any
) -> Iterator[tuple[turns.Team, turns.Team]]:
    """The processes of both pipelines: a process for every device, and one with all of them.

    Args:
      devices: N.
      forced: whether there is a single process with N devices in the place of N processes.
      kind: `--kind` of `pipeline_worker.py`.
      reference: the file in which the first saves the network.
      **clips: flags of the worker.
    """
    check(devices, forced=forced)
    worker = [sys.executable, str(ROOT / "experiments/benchmarks/workers/pipeline_worker.py")]
    worker += [f"--kind={kind}", *(f"--{name}={value}" for name, value in clips.items())]
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        first = [*worker, *([f"--forced={devices}"] if forced else [])]
        first += [f"--reference={reference}"] if reference else []
        number = 1 if forced else devices
        each = stack.enter_context(turns.team(first, number, Path(folder) / "each"))
        groups = ",".join(map(str, each.about["groups"]))
        second = [*worker, "--execution=program_per_device", f"--forced={devices}"]
        with one_thread_a_device():  # As it has in the other team.
            both = stack.enter_context(
                turns.team([*second, f"--groups={groups}"], 1, Path(folder) / "all")
            )
        yield each, both


@contextmanager
def one_thread_a_device() -> Iterator[None]:
    """For processes that are started here, with several devices each."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    try:
        yield
    finally:
        os.environ["XLA_FLAGS"] = flags


def in_turn(each: turns.Team, both: turns.Team) -> dict[str, Callable[[], Any]]:
    """The programs of both teams by name, but for the groups of modules alone."""
    return {
        name: partial(turns.ask, team, name)
        for team in (each, both)
        for name in team.about["programs"]
        if name != "groups"
    }


def rows(
    rows_of: Callable[[dict, dict[str, Any]], list[dict]],
    kind: str,
    settings: Settings,
    progress: Progress,
) -> list[dict]:
    """The rows of a suite, for every number of devices.

    Args:
      rows_of: makes the rows of one number of devices from what was measured and `clips_of`.
      kind: `--kind` of `pipeline_worker.py`.
      settings: of the suite.
      progress: shows the numbers of devices.
    """
    clips = clips_of(settings)
    task = progress.add_task("numbers of devices", total=len(settings.devices))
    result = []
    for number in settings.devices:
        with teams(number, forced=settings.forced, kind=kind, **clips) as (each, both):
            alone: list[dict[str, float]] = []

            def groups(each=each, alone=alone) -> None:
                answers = turns.ask_all(each, "groups")
                alone.append({name: s for one in answers for name, s in one.items()})

            runs = in_turn(each, both) | {"groups": groups}
            times = measure.seconds(runs, rounds=settings.rounds, progress=progress)
            del times["groups"]
            for name in alone[0]:  # The first is the warm-up.
                times[name] = [one[name] for one in alone[1:]]
            about = {name: each.about[name] for name in ("groups", "module_costs")}
            found = about | {
                "devices": number, "times": times,
                "temporary_bytes": each.about["temporary_bytes"],
            }  # fmt: skip
        result += rows_of(found, clips)
        progress.advance(task)
    progress.remove_task(task)
    return result


def programs(run: dict) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """The fields that every row of a measured program has, and its seconds, round by round.

    A pipeline is compared with Sideways and with blocking backprop in the same execution. The
    ideal speedup is the cost of all groups over that of the largest, each alone on a device. It is
    for pipelines, without blocking backprop.
    """
    times = run["times"]
    groups = [times[f"group {n}"] for n in range(run["devices"]) if f"group {n}" in times]
    alone = [statistics.median(seconds) for seconds in groups]
    for name, seconds in times.items():
        if name.startswith("group"):
            continue
        rule, *schedule, execution = name.split()
        sideways = times.get(f"sideways {execution}")
        sharded = execution in PIPELINES
        blocking = BLOCKING + (execution if sharded else PIPELINES[0])
        speedup, ideal, share = ratio(times[blocking], seconds), None, None
        if alone and sharded and name != blocking:
            ideal = sum(alone) / max(alone)
            share = max(alone) / statistics.median(seconds)
        yield (
            {
                "devices": run["devices"] if sharded else 1,
                "groups": run["groups"] if sharded else None,
                "rule": rule,
                "schedule": schedule[0] if schedule else None,
                "execution": execution,
                "time_over_sideways": sideways and ratio(seconds, sideways),
                "speedup_over_blocking": speedup,
                "ideal_speedup": ideal,
                "efficiency": ideal and speedup / ideal,
                "share_of_ideal_speed": share,
                "seconds": seconds,
                "seconds_of_groups": alone if alone and sharded else None,
                "temporary_bytes_per_device": run["temporary_bytes"].get(name),
            },
            seconds,
        )
