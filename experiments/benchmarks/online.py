"""Suite `online`: frames per second of streams at a small batch, with weights that change at each.

On the same pinned devices: Sideways with an update after every frame, and blocking backprop, one
frame up and down at a time (which updates after the clip, so that it is a little faster here than
it could be). The ideal is that of `table2`. `output_lag` is in steps, of the auto-encoder's rule:
D-1 with Sideways; blocking backprop shows an output for 2D-1 steps, so D-1 to 3D-3.
"""

from __future__ import annotations

import statistics
from typing import Any

from rich.progress import Progress

from experiments.benchmarks import measure, rig
from experiments.benchmarks.table2 import BLOCKING, picture, prepare

__all__ = ["HEADERS", "SHOWN", "picture", "prepare", "rows"]

SHOWN = {
    "devices": "{}",
    "rule": "{}",
    "execution": "{}",
    "frames_per_second": "{:.3g}",
    "speedup_over_blocking": "{:.2f}",
    "ideal_speedup": "{:.2f}",
    "efficiency": "{:.0%}",
    "share_of_ideal_speed": "{:.0%}",
    "output_lag": "{}",
}
HEADERS = {
    "devices": "N",
    "frames_per_second": "frames/s",
    "speedup_over_blocking": "over blocking",
    "ideal_speedup": "ideal",
    "efficiency": "of it",
    "share_of_ideal_speed": "of ideal speed",
    "output_lag": "lag",
}


def rows(
    *,
    model: str,
    frames: int,
    batch: int,
    size: int,
    rounds: int,
    devices: tuple[int, ...],
    dtype: str,
    forced: bool,
    progress: Progress,
    **_: Any,
) -> list[dict]:
    """Measures; one row for each program and number of devices."""
    settings = {"model": model, "frames": frames, "batch": batch, "size": size, "dtype": dtype}
    task = progress.add_task("numbers of devices", total=len(devices))
    result = []
    for number in devices:
        run = rig.measure(number, forced=forced, rounds=rounds, kind="online", **settings)
        result += rows_of(run, settings)
        progress.advance(task)
    progress.remove_task(task)
    return result


def rows_of(run: dict, settings: dict[str, Any]) -> list[dict]:
    """The rows of one number of devices, out of what the worker measured."""
    times, depth = run["times"], len(run["module_costs"])
    alone = [statistics.median(times[f"group {n}"]) for n in range(run["devices"])]
    ideal = sum(alone) / max(alone)
    result = []
    for name, seconds in times.items():
        if name.startswith("group"):
            continue
        rule, *schedule, execution = name.split()
        pipelined = rule == "sideways" and execution == "depth_sharded"
        speedup = measure.ratio(times[BLOCKING], seconds)
        result.append(
            {
                "suite": "online",
                **settings,
                "devices": run["devices"] if execution == "depth_sharded" else 1,
                "groups": run["groups"] if execution == "depth_sharded" else None,
                "rule": rule,
                "schedule": schedule[0] if schedule else None,
                "execution": execution,
                "frames_per_second": settings["frames"] / statistics.median(seconds),
                "speedup_over_blocking": speedup,
                "ideal_speedup": ideal if pipelined else None,
                "efficiency": speedup / ideal if pipelined else None,
                "share_of_ideal_speed": max(alone) / statistics.median(seconds)
                if pipelined
                else None,
                "output_lag": f"{depth - 1}"
                if rule == "sideways"
                else f"{depth - 1}-{3 * depth - 3}",
                "seconds": seconds,
            }
        )
    return result
