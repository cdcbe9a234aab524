"""Suite `online`: frames per second of streams at a small batch, with an update at every frame.

On the same pinned devices, in one program and with a program for every device, it runs Sideways and
pipelined backprop with an update after every frame; blocking backprop, one frame up and down at a
time (it updates after the clip, which is a little faster than after a frame); and
`stream.PipelinedModel`, depth-parallel inference, with a call for every frame. The ideal is that of
the suite `table2`. `output_lag` is in steps: D-1 with both pipelines; blocking backprop shows an
output for 2D-1 steps, so D-1 to 3D-3.
"""

from __future__ import annotations

import statistics
from typing import Any

from rich.progress import Progress

from experiments.benchmarks.rig import processes
from experiments.benchmarks.rig.processes import Settings
from experiments.benchmarks.rig.suite import Suite
from experiments.benchmarks.suites.speedup import picture, prepare

SHOWN = {
    "devices": "{}",
    "rule": "{}",
    "execution": "{}",
    "frames_per_second": "{:.3g}",
    "speedup_over_blocking": "{:.2f}",
    "ideal_speedup": "{:.2f}",
    "efficiency": "{:.0%}",
    "share_of_ideal_speed": "{:.0%}",
    "time_over_sideways": "{:.2f}",
    "output_lag": "{}",
}
HEADERS = {
    "devices": "N",
    "frames_per_second": "frames/s",
    "speedup_over_blocking": "over blocking",
    "ideal_speedup": "ideal",
    "efficiency": "of it",
    "share_of_ideal_speed": "of ideal speed",
    "time_over_sideways": "time / Sideways",
    "output_lag": "lag",
}


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Measures with `processes.rows`; one row for each program and number of devices."""
    return processes.rows(rows_of, "online", settings, progress)


def rows_of(run: dict, settings: dict[str, Any]) -> list[dict]:
    """The rows of one number of devices, from the result of the worker."""
    depth = len(run["module_costs"])
    late = {"backprop": f"{depth - 1}-{3 * depth - 3}"}
    # Inference is not compared with learning.
    nothing = dict.fromkeys(
        ("speedup_over_blocking", "ideal_speedup", "efficiency", "share_of_ideal_speed",
         "time_over_sideways")
    )  # fmt: skip
    return [
        row
        | (nothing if row["rule"] == "inference" else {})
        | {
            "suite": "online",
            **settings,
            "frames_per_second": settings["frames"] / statistics.median(seconds),
            "output_lag": late.get(row["rule"], f"{depth - 1}"),
        }
        for row, seconds in processes.programs(run)
    ]


SUITE = Suite(
    settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN, headers=HEADERS
)
