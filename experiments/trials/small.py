"""A training run that takes seconds, as users start it, and what it left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
# Of two processes: they agree on every save, which takes a second or two where cores are shared.
STEPS_OF_PROCESSES = 20
PATIENCE = 900.0  # seconds for a run to its end
_FIELDS = {
    "model.widths": (4, 4, 4, 4, 4),
    "data.size": 12,
    "data.digit_size": 8,
    "data.num_frames": 12,
    "data.length": 12,
    "train.num_steps": STEPS,
    "train.log_every": 7,
    "train.checkpoint_every": 1,  # so that a kill comes inside a save as often as not
    "train.eval_every": 25,
}


class Left(NamedTuple):
    """What a finished run left; equal for runs that did the same, bit for bit."""

    metrics: bytes
    step: int
    state: dict[str, bytes]  # the arrays of the last checkpoint, by their paths


def command(
    workdir: Path, variant: str = "plain", processes: int = 2, **fields: object
) -> list[str]:
    """The command line of a run.

    Args:
      workdir: of the run.
      variant: plain; workers, two of them make the batches; or processes, on a mesh.
      processes: how many of those.
      **fields: of the config, with two underscores for every dot.
    """
    named = _FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    if variant == "workers":
        named["data.num_workers"] = 2
    if variant == "processes":
        named |= {"execution": "depth_sharded", "mesh.depth": processes}
        if "train__num_steps" not in fields:
            named |= {"train.num_steps": STEPS_OF_PROCESSES, "train.eval_every": 8}
    main = [
        "experiments/main.py", "--config=experiments/configs/quickstart.py:smoke",
        f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in named.items()),
    ]  # fmt: skip
    if variant != "processes":
        return [sys.executable, *main]
    launch = "experiments/launch.py", f"--processes={processes}", f"--logs={workdir}.logs", "--"
    return [sys.executable, *launch, "python", *main]


def start(arguments: list[str], log: Path, errors: Path | None = None) -> subprocess.Popen:
    """Starts it in the background, with all it says in a file, or its errors in another."""
    with log.open("ab") as stream, (errors or log).open("ab") as error_stream:
        return subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream,
                                stderr=error_stream, start_new_session=True)  # fmt: skip


def to_its_end(
    arguments: list[str], log: Path, errors: Path | None = None, patience: float = PATIENCE
) -> int | None:
    """Starts it and waits; the exit status, or None if it had to be killed."""
    process = start(arguments, log, errors)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        for one in family(process):
            one.kill()
        process.wait()
        return None


def newest(workdir: Path) -> int:
    """The step of the newest checkpoint; -1 if there is none."""
    steps = (path.name for path in workdir.glob("checkpoints/*"))
    return max((int(name) for name in steps if name.isdigit()), default=-1)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The process and all that it has started."""
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_left(process: subprocess.Popen, family: Sequence[psutil.Process], seconds: float) -> int:
    """Waits for the end of all of them; kills those that are left then, and gives their number."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(_is_alive, family)):
        process.poll()
        time.sleep(0.05)
    left = [one for one in family if _is_alive(one)]
    for one in left:
        one.kill()
    return len(left)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_by(workdir: Path) -> Left:
    """Reads what a finished run left."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    path = (folder / str(step) / "train_state").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        # In host memory: as they were saved, they would ask for the devices that there were.
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(path, restore_args=args)

    def content(leaf):
        return np.asarray(leaf).tobytes()

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    state = {jax.tree_util.keystr(path): content(leaf) for path, leaf in leaves}
    return Left((workdir / "metrics.jsonl").read_bytes(), step, state)
