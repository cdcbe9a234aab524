"""Measuring several devices on a CPU: every device is a process with cores of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from experiments.benchmarks.rig.measure import ratio
from experiments.benchmarks.rig.suite import Dtype
from experiments.processes.children import on_cores, usable_cores

BLOCKING = "backprop blocking depth_sharded"
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


def measure(
    devices: int,
    *,
    forced: bool,
    worker: str = "pipeline_worker.py",
    cores: int | None = None,
    **settings: Any,
) -> dict:
    """The result of a worker on `devices` devices.

    Args:
      devices: N.
      forced: whether they are devices of one process that share its cores.
      worker: a script in `benchmarks/workers`.
      cores: the number of cores for all processes together, on Linux; by default all.
      **settings: flags of the worker.

    Raises:
      ValueError: for more devices than cores.
      RuntimeError: if a worker failed, with the end of its stderr.
    """
    check(devices, forced=forced)
    program = ["python", str(ROOT / "experiments" / "benchmarks" / "workers" / worker)]
    program += [f"--{name}={value}" for name, value in settings.items()]
    if forced:
        command = [sys.executable, *program[1:], f"--forced={devices}"]
    else:
        launch = str(ROOT / "experiments" / "launch.py")
        command = [sys.executable, launch, f"--processes={devices}", "--", *program]
    own = []
    if cores is not None and hasattr(os, "sched_getaffinity"):
        own = sorted(os.sched_getaffinity(0))[:cores]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with on_cores(own):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(results[-1].removeprefix("RESULT "))


def rows(
    rows_of: Callable[[dict, dict[str, Any]], list[dict]],
    kind: str,
    settings: Settings,
    progress: Progress,
) -> list[dict]:
    """The rows of a suite, for every number of devices.

    Args:
      rows_of: makes the rows of one number of devices from the result of the worker and `clips_of`.
      kind: `--kind` of `pipeline_worker.py`.
      settings: of the suite.
      progress: shows the numbers of devices.
    """
    clips = clips_of(settings)
    task = progress.add_task("numbers of devices", total=len(settings.devices))
    result = []
    for number in settings.devices:
        run = measure(
            number, forced=settings.forced, rounds=settings.rounds, kind=kind, **clips
        )  # fmt: skip
        result += rows_of(run, clips)
        progress.advance(task)
    progress.remove_task(task)
    return result


def programs(run: dict) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """The fields that every row of a measured program has, and its seconds, round by round.

    The ideal speedup is the cost of all groups over that of the largest, each alone on a device. It
    is for pipelines, without blocking backprop.
    """
    times = run["times"]
    alone = [statistics.median(times[f"group {n}"]) for n in range(run["devices"])]
    for name, seconds in times.items():
        if name.startswith("group"):
            continue
        rule, *schedule, execution = name.split()
        sharded = execution == "depth_sharded"
        speedup, ideal, share = ratio(times[BLOCKING], seconds), None, None
        if sharded and name != BLOCKING:
            ideal = sum(alone) / max(alone)
            share = max(alone) / statistics.median(seconds)
        yield (
            {
                "devices": run["devices"] if sharded else 1,
                "groups": run["groups"] if sharded else None,
                "rule": rule,
                "schedule": schedule[0] if schedule else None,
                "execution": execution,
                "speedup_over_blocking": speedup,
                "ideal_speedup": ideal,
                "efficiency": ideal and speedup / ideal,
                "share_of_ideal_speed": share,
                "seconds": seconds,
                "seconds_of_groups": alone if sharded else None,
                "temporary_bytes_per_device": run["temporary_bytes"].get(name),
            },
            seconds,
        )
