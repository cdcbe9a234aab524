"""Starts several processes of one program on this machine, one device each.

python experiments/launch.py --processes=2 -- python experiments/main.py --config=... --workdir=...

Each process gets cores of its own (Linux), and the arguments that `experiments/main.py` needs to
find the others. What process 0 prints is shown as it is; what the others print goes to
`--logs/process-N.log`. When one fails, the others are stopped at once and the last lines that it
printed are shown. Ctrl-C, or SIGTERM, asks all of them to save and stop (with SIGTERM, which ends a
program that has not come to handle it yet). This is the honest way to measure a
pipeline on a CPU: devices of one process share its threads.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # First of all: what comes meanwhile waits for `end_at_once`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from experiments.processes import interrupts

if __name__ == "__main__":
    interrupts.end_at_once("Stopped before anything was started.")

import tempfile
from pathlib import Path

from absl import app, flags

from experiments.processes.children import start, stop, wait

_PROCESSES = flags.DEFINE_integer("processes", 2, "how many", lower_bound=1)
_LOG_DIR = flags.DEFINE_string("logs", None, "where the others' output goes; default: temporary")
_PIN = flags.DEFINE_bool("pin", True, "give each process its own cores, where Linux lets us")
_GRACE = flags.DEFINE_float("grace", 60.0, "seconds to save and stop in, before a kill")


def main(argv: list[str]) -> int:
    """Starts, watches, and reports."""
    command = argv[1:]
    if not command:
        raise app.UsageError("give the program after --, for example: -- python program.py")
    log_dir = Path(_LOG_DIR.value or tempfile.mkdtemp(prefix="launch-"))
    log_dir.mkdir(parents=True, exist_ok=True)
    if command[0] == "python":  # That of this environment.
        command[0] = sys.executable
    children: list = []
    interrupts.take_along(children)
    with interrupts.Asked(notice="", again="Stopped at once; all processes were killed.") as asked:
        try:
            start(command, _PROCESSES.value, log_dir, children, pin=_PIN.value)
            process, code = wait(children, grace=_GRACE.value, asked=lambda: bool(asked))
        except OSError as error:
            print(f"Error: {error.filename or command[0]} cannot be started: "
                  f"{error.strerror or error}", file=sys.stderr)  # fmt: skip
            return 127
        if asked.number:
            stop(children, signal.SIGTERM, _GRACE.value)
            if children[0].returncode == -signal.SIGTERM:  # It could not say so itself.
                print("Stopped while the processes were starting.", file=sys.stderr)
            return 128 + asked.number
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        print(f"Process {process} of {_PROCESSES.value} {how}; the others were stopped.",
              file=sys.stderr)  # fmt: skip
        log = log_dir / f"process-{process}.log"
        if log.exists():
            tail = log.read_text(errors="replace").splitlines()[-15:]
            print(f"The end of {log}:", *tail, sep="\n", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    app.run(main)
