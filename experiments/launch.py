"""Starts several processes of one program on this machine, one device each.

python experiments/launch.py --processes=2 -- python experiments/main.py --config=... --workdir=...

Each process gets cores of its own (Linux), and the arguments that `experiments/main.py` needs to
find the others. What process 0 prints is shown as it is; what the others print goes to
`--logs/process-N.log`. When one fails, the others are stopped at once and the last lines that it
printed are shown. Ctrl-C asks all of them to save and stop. This is the honest way to measure a
pipeline on a CPU: devices of one process share its threads.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags

_PROCESSES = flags.DEFINE_integer("processes", 2, "how many", lower_bound=1)
_LOG_DIR = flags.DEFINE_string("logs", None, "where the others' output goes; default: temporary")
_PIN = flags.DEFINE_bool("pin", True, "give each process its own cores, where Linux lets us")
_GRACE = flags.DEFINE_float("grace", 60.0, "seconds to save and stop in, before a kill")


START_GRACE = 1.0  # seconds, for processes that have only just begun


def usable_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cores_of(process: int, processes: int) -> list[int]:
    """The cores of a process: an equal share of those that this one may use, at least one.

    >>> set(cores_of(0, 1)) == os.sched_getaffinity(0)
    True
    """
    cores = sorted(os.sched_getaffinity(0))
    share = max(len(cores) // processes, 1)
    return [cores[(process * share + n) % len(cores)] for n in range(share)]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Keeps this thread to some cores, if there are any: a process started here inherits them.

    (Not `preexec_fn`, which forks; programs with threads, such as JAX's, must not.)
    """
    before = os.sched_getaffinity(0) if cores else None
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


def start(
    command: list[str],
    processes: int,
    log_dir: Path,
    children: list,
    *,
    pin: bool,
    pipes: bool = False,
) -> None:
    """Starts the processes, appending them to `children`; process 0 writes to the terminal.

    With `pipes` each has a `stdin` and a `stdout` for the caller instead, and a log for its errors.

    Raises:
      OSError: if one cannot be started; those that were started before it have been stopped then.
    """
    try:
        _start_all(command, processes, log_dir, children, pin=pin, pipes=pipes)
    except BaseException:
        stop(children, signal.SIGTERM, START_GRACE)
        raise


def _start_all(command, processes, log_dir, children, *, pin, pipes) -> None:
    address = f"127.0.0.1:{free_port()}"
    for number in range(processes):
        arguments = [
            *command,
            f"--coordinator_address={address}",
            f"--num_processes={processes}",
            f"--process_id={number}",
        ]
        environment = dict(os.environ)
        cores = cores_of(number, processes) if pin and hasattr(os, "sched_getaffinity") else []
        if cores:
            # As many threads as cores: XLA counts the machine's otherwise.
            environment.setdefault("PJRT_NPROC", str(len(cores)))
        logged = number > 0 or pipes
        log = (log_dir / f"process-{number}.log").open("wb") if logged else None
        with on_cores(cores):
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE if pipes else None,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                text=pipes,
                env=environment,
                # Out of reach of the terminal's Ctrl-C, which `stop` passes on: a second one would
                # keep them from saving.
                start_new_session=True,
            )
        children.append(child)
        if log:
            log.close()


def wait(children: list, *, grace: float) -> tuple[int, int]:
    """Waits until all are done, or one fails: then the others are asked to stop, and killed.

    Returns:
      `(process, exit code)` of the first that failed, or `(0, 0)`.
    """
    while True:
        codes = [child.poll() for child in children]
        failed = [n for n, code in enumerate(codes) if code]
        if failed:
            stop(children, signal.SIGTERM, grace)
            return failed[0], codes[failed[0]]
        if all(code == 0 for code in codes):
            return 0, 0
        time.sleep(0.2)


def stop(children: list, number: signal.Signals, grace: float) -> None:
    """Sends a signal to those that still run, and kills whoever is there after `grace` seconds."""
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main(argv: list[str]) -> int:
    """Starts, watches, and reports."""
    command = argv[1:]
    if not command:
        raise app.UsageError("give the program after --, for example: -- python program.py")
    log_dir = Path(_LOG_DIR.value or tempfile.mkdtemp(prefix="launch-"))
    log_dir.mkdir(parents=True, exist_ok=True)
    if command[0] == "python":  # This environment's, whatever `python` is outside of it.
        command[0] = sys.executable
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children: list = []
    try:
        start(command, _PROCESSES.value, log_dir, children, pin=_PIN.value)
        process, code = wait(children, grace=_GRACE.value)
    except OSError as error:
        print(f"Error: {error.filename or command[0]} cannot be started: {error.strerror or error}",
              file=sys.stderr)  # fmt: skip
        return 127
    except KeyboardInterrupt:
        try:
            stop(children, signal.SIGINT, _GRACE.value)
        finally:  # Also after a second Ctrl-C.
            for child in children:
                child.kill()
        return 130
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
