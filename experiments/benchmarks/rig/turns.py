"""Several sets of processes whose programs run in turn; the other sets sleep meanwhile.

This compares frameworks that cannot share a process in one interleaved run. The parent writes the
name of a program to the stdin of every process of a set; each runs it and answers with a line of
JSON. Waiting for a line takes no processor time. A process ends with its stdin.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.processes.children import start, stop

ANSWER = "ANSWER "  # Libraries print to stdout too.
GRACE_SECONDS = 20.0


class Team(NamedTuple):
    """Processes that run a program together."""

    children: list  # subprocess.Popen
    log_dir: Path  # with process-N.log of each
    about: dict[str, Any]  # the first answer of process 0: `programs` and others


def serve(programs: Mapping[str, Callable[[], dict | None]], **about: Any) -> None:
    """In a worker: answers that it is ready, then runs requested programs until stdin ends.

    Args:
      programs: by name; each returns its answer, JSON, when all is computed.
      **about: JSON for the parent, beside the names of the programs.
    """
    print(ANSWER + json.dumps({"programs": list(programs), **about}), flush=True)
    for line in sys.stdin:
        print(ANSWER + json.dumps(programs[line.rstrip("\n")]()), flush=True)


@contextmanager
def team(command: list[str], processes: int, log_dir: Path) -> Iterator[Team]:
    """Starts processes with cores of their own each, and waits until they are ready.

    Args:
      command: a program that takes the flags of `processes/distributed.py` and calls `serve`.
      processes: how many.
      log_dir: for their stderr.

    Raises:
      RuntimeError: if one ends, with the end of its log.
    """
    log_dir.mkdir(parents=True)
    children: list = []
    try:
        start(command, processes, log_dir, children, pin=True, pipes=True)
        about = _answers(Team(children, log_dir, {}))[0]
        yield Team(children, log_dir, about)
        _close(children)
        for child in children:
            with suppress(
                subprocess.TimeoutExpired
            ):  # The results are kept even if a process hangs.
                child.wait(GRACE_SECONDS)
    finally:
        _close(children)
        stop(children, signal.SIGTERM, grace=1.0)
        for child in children:
            child.stdout.close()


def ask(team: Team, program: str) -> dict | None:
    """Runs a program in all processes of a team; when all have answered, the answer of process 0.

    Errors are those of `ask_all`.
    """
    return ask_all(team, program)[0]


def ask_all(team: Team, program: str) -> list:
    """Runs a program in all processes of a team; the answer of each, when all have answered.

    Raises:
      RuntimeError: if one ends instead, with the end of its log.
    """
    for number, child in enumerate(team.children):
        try:
            child.stdin.write(program + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise _failed(team, number) from None
    return _answers(team)


def _close(children: list) -> None:
    for child in children:
        with suppress(BrokenPipeError):  # The process ended and left input unread.
            child.stdin.close()


def _answers(team: Team) -> list:
    """The answer of each process. If one ends instead, it raises without waiting for the others."""

    def answer(child) -> str | None:
        return next((line for line in child.stdout if line.startswith(ANSWER)), None)

    with ThreadPoolExecutor(len(team.children)) as pool:
        numbers = {pool.submit(answer, one): n for n, one in enumerate(team.children)}
        for done in as_completed(numbers):
            if done.result() is None:
                # The others wait for it: stop them, so that the threads that read from them end.
                stop(team.children, signal.SIGTERM, grace=1.0)
                raise _failed(team, numbers[done])
        found = {number: done.result() for done, number in numbers.items()}
    return [json.loads(found[n].removeprefix(ANSWER)) for n in range(len(team.children))]


def _failed(team: Team, number: int) -> RuntimeError:
    # One failure makes the others fail: show all logs.
    ends = []
    for n in range(len(team.children)):
        text = (team.log_dir / f"process-{n}.log").read_text(errors="replace")
        ends.append(f"process {n} said:\n{text[-1500:]}")
    return RuntimeError(f"process {number} of {len(team.children)} ended. " + "\n".join(ends))
