"""A checkpoint of N devices is gone on from on M: the run has to come to the same as on one."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from experiments.trials import small

COUNTS = 1, 2, 3, 6  # devices, for six modules
PAIRS = list(itertools.product(COUNTS, COUNTS))
TOLERANCE = 2e-4  # relative, of the metrics: sums in another order


def run(numbers: range, folder: Path) -> Iterator[dict]:
    """Yields the outcome of every pair `(N, M)`, `PAIRS[number]`."""
    folder.mkdir(parents=True, exist_ok=True)
    alone = folder / "alone"
    for number in numbers[: len(PAIRS)]:
        _run(alone, 1, 4)
        before, after = PAIRS[number]
        begun = folder / f"begun-on-{before}"
        _run(begun, before, 2)
        workdir = folder / f"from-{before}-to-{after}"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(begun, workdir)
        (workdir / "summary.json").unlink()
        status = _run(workdir, after, 4)
        largest = _difference(workdir, alone) if status == 0 else None
        yield {
            "number": number, "from": before, "to": after, "status": status,
            "largest_difference": largest,
            "failed": largest is None or not largest < TOLERANCE,
        }  # fmt: skip
        shutil.rmtree(workdir)


def _run(workdir: Path, devices: int, steps: int) -> int:
    """Runs to a step, if that has not been done; gives the exit status."""
    if (workdir / "summary.json").exists():
        return 0
    fields = {"train__num_steps": steps, "train__log_every": 1, "train__eval_every": 0}
    if devices > 1:
        fields |= {"execution": "depth_sharded", "mesh__depth": devices}
    return small.start(small.command(workdir, **fields), Path(f"{workdir}.log")).wait(300)


def _difference(workdir: Path, other: Path) -> float:
    """The largest relative difference of two logs; infinite for logs of other lines."""
    logs = [[json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
            for one in (workdir, other)]  # fmt: skip
    some, others = ([line for line in log if line["split"] == "train"] for log in logs)
    if [line["step"] for line in some] != [line["step"] for line in others]:
        return math.inf
    return max(
        abs(line[name] - same[name]) / max(abs(same[name]), 0.1)
        for line, same in zip(some, others, strict=True)
        for name in ("loss", "accuracy", "grad_norm")
    )
