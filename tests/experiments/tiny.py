"""Small experiments that the tests run, and how to run main.py as a user does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs import quickstart
from experiments.workdir import metrics_log

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "experiments/main.py"]
# The same for the quickstart in main.py and in `config` below.
TINY = {
    "model.widths": (4, 4, 4, 4, 4),
    "model.cut": (3, 3),  # D = 2
    "data.size": 12,
    "data.digit_size": 8,
    "data.num_frames": 5,
    "data.length": 5,
    "optimizer.learning_rate": 0.01,
    "optimizer.warmup_epochs": 0.0,
}


def config(**fields) -> ConfigDict:
    """The quickstart, tiny, of six steps; `fields` with two underscores for every dot."""
    config = quickstart.get_config("smoke")
    config.train.num_steps = 6
    config.train.log_every = 2
    config.train.checkpoint_every = config.train.eval_every = 3
    for name, value in (TINY | {k.replace("__", "."): v for k, v in fields.items()}).items():
        node, _, leaf = name.rpartition(".")
        (config[node] if node else config)[leaf] = value
    return config.lock()


def overrides(**fields) -> list[str]:
    """The flags of main.py for `config(**fields)`, but of the steps."""
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return [f"--config.{name}={value}" for name, value in (TINY | named).items()]


def run_main(*flags: str, timeout: float = 120) -> subprocess.CompletedProcess:
    """Runs main.py to its end."""
    return subprocess.run(
        [*MAIN, *flags], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def stop_main(*flags: str, workdir: Path, after: int, signal_number: int) -> tuple[int, str]:
    """Runs main.py and sends it a signal once `metrics.jsonl` has a line of step `after` or more.

    As from a terminal, the signal goes to all of its processes.

    Returns:
      Its exit status and what it wrote to the standard error.
    """
    process = subprocess.Popen(
        [*MAIN, *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # A process group of its own.
    )
    try:
        deadline = time.monotonic() + 120
        while not any(line["step"] >= after for line in lines(workdir)):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no metrics in two minutes"
            time.sleep(0.01)
        os.killpg(process.pid, signal_number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, errors


def lines(workdir: Path) -> list[dict]:
    """What is in `metrics.jsonl`."""
    return list(metrics_log.read(workdir / "metrics.jsonl"))


SIGINT, SIGKILL, SIGTERM = signal.SIGINT, signal.SIGKILL, signal.SIGTERM
