"""The honest rig on a CPU: one process with a device and cores of its own for every device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.launch import usable_cores

ROOT = Path(__file__).resolve().parents[2]


def check(devices: int, *, forced: bool) -> None:
    """Raises ValueError if the processes could not have a core each."""
    cores = usable_cores()
    if not forced and devices > cores:
        raise ValueError(
            f"{devices} devices want a process with a core each, there are {cores} cores: "
            "lower --devices, or give --forced for devices that share them (which shows how it "
            "works, not how fast)"
        )


def measure(devices: int, *, forced: bool, **settings: Any) -> dict:
    """What `pipeline_worker.py` measures on so many devices.

    Args:
      devices: N.
      forced: whether they are devices of one process that share its cores.
      **settings: flags of the worker.

    Raises:
      ValueError: for more devices than cores.
      RuntimeError: if a worker failed, with what it said.
    """
    check(devices, forced=forced)
    worker = ["python", str(ROOT / "experiments" / "benchmarks" / "pipeline_worker.py")]
    worker += [f"--{name}={value}" for name, value in settings.items()]
    if forced:
        command = [sys.executable, *worker[1:], f"--forced={devices}"]
    else:
        launch = str(ROOT / "experiments" / "launch.py")
        command = [sys.executable, launch, f"--processes={devices}", "--", *worker]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(results[-1].removeprefix("RESULT "))
