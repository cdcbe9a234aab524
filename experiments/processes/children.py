"""Starts processes of one program on this machine, with cores of their own, and watches them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.processes.interrupts import LAUNCHER

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
    """A port of this machine that is free."""
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
        environment = os.environ | {LAUNCHER: str(os.getpid())}
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


def wait(
    children: list, *, grace: float, asked: Callable[[], bool] = lambda: False
) -> tuple[int, int]:
    """Waits until all are done, or one fails: then the others are asked to stop, and killed.

    Args:
      children: the processes.
      grace: seconds to stop in.
      asked: whether to wait no longer.

    Returns:
      `(process, exit code)` of the first that failed, or `(0, 0)`.
    """
    while not asked():
        codes = [child.poll() for child in children]
        failed = [n for n, code in enumerate(codes) if code]
        if failed:
            stop(children, signal.SIGTERM, grace)
            return failed[0], codes[failed[0]]
        if all(code == 0 for code in codes):
            return 0, 0
        time.sleep(0.2)
    return 0, 0


def stop(children: list, number: signal.Signals, grace: float) -> None:
    """Sends a signal to those that still run, and kills those left after `grace` seconds."""
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
