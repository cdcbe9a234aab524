"""Programs of several sets of processes, run one at a time: those that are not asked sleep.

For comparing frameworks that cannot share a process, in one interleaved run. A line with the name
of a program goes to the stdin of every process of a set; each runs it and answers with a line of
JSON. Waiting for a line takes no processor time. The end of stdin is the end of the process.
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
    about: dict[str, Any]  # what process 0 said of itself when it was ready: `programs`, ...


def serve(programs: Mapping[str, Callable[[], dict | None]], **about: Any) -> None:
    """In a worker: says that it is ready, then runs what it is asked to until stdin ends.

    Args:
      programs: by name; what one returns, JSON, is the answer. It returns when all is computed.
      **about: JSON that goes to the parent with the names of the programs.
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
      log_dir: for what they say on stderr.

    Raises:
      RuntimeError: if one ends, with what it said.
    """
    log_dir.mkdir(parents=True)
    children: list = []
    try:
        start(command, processes, log_dir, children, pin=True, pipes=True)
        about = _answers(Team(children, log_dir, {}))[0]
        yield Team(children, log_dir, about)
        _close(children)
        for child in children:
            with suppress(subprocess.TimeoutExpired):  # What was measured is worth more.
                child.wait(GRACE_SECONDS)
    finally:
        _close(children)
        stop(children, signal.SIGTERM, grace=1.0)
        for child in children:
            child.stdout.close()


def ask(team: Team, program: str) -> dict | None:
    """Runs a program in all processes of a team; what process 0 answers, when all have.

    Raises:
      RuntimeError: if one ends instead, with what it said.
    """
    for number, child in enumerate(team.children):
        try:
            child.stdin.write(program + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise _failed(team, number) from None
    return _answers(team)[0]


def _close(children: list) -> None:
    for child in children:
        with suppress(BrokenPipeError):  # What was not read by one that has ended.
            child.stdin.close()


def _answers(team: Team) -> list:
    """What each process answers. If one ends instead, that is raised without waiting for others."""

    def answer(child) -> str | None:
        return next((line for line in child.stdout if line.startswith(ANSWER)), None)

    with ThreadPoolExecutor(len(team.children)) as pool:
        numbers = {pool.submit(answer, one): n for n, one in enumerate(team.children)}
        for done in as_completed(numbers):
            if done.result() is None:
                # Those that wait for it are stopped, so that the threads that read from them end.
                stop(team.children, signal.SIGTERM, grace=1.0)
                raise _failed(team, numbers[done])
        found = {number: done.result() for done, number in numbers.items()}
    return [json.loads(found[n].removeprefix(ANSWER)) for n in range(len(team.children))]


def _failed(team: Team, number: int) -> RuntimeError:
    # The others fail because one did: show all that ended badly.
    ends = []
    for n in range(len(team.children)):
        text = (team.log_dir / f"process-{n}.log").read_text(errors="replace")
        ends.append(f"process {n} said:\n{text[-1500:]}")
    return RuntimeError(f"process {number} of {len(team.children)} ended. " + "\n".join(ends))
