"""Ctrl-C and SIGTERM, from the first line of a program to its last: one line, and 130 or 143.

A program blocks both signals by its first statement, and calls `end_at_once`, which unblocks them,
before it imports anything else that takes time. While there is something to finish, it holds an
`Asked`, which turns the first signal into a flag.

Python runs signal handlers between two instructions of the main thread. That is minutes late when
XLA compiles, and an exception raised there passes through C++ code which swallows it or crashes. So
a thread, which the signal wakes at once, ends the process; nothing is raised and nothing is torn
down. This file imports what an interpreter has loaded anyway.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

TYPE_CHECKING = False  # That of `typing` costs milliseconds in which a signal is Python's own.
if TYPE_CHECKING:
    import subprocess

SIGNALS = signal.SIGINT, signal.SIGTERM
LAUNCHER = "SIDEWAYS_LAUNCHER"  # an environment variable: the number of that process
_SOON = "\nStopping soon, between two steps. Ctrl-C again stops at once, without saving.\n"
_AT_ONCE = "Stopped at once, without saving. Run the same command again to go on."
_PATIENCE = 10.0  # seconds for the thread, which ends the process in about one
_PARENT_SECONDS = 1.0  # from one look at the parent to the next
_FLUSH_SECONDS = 1.0  # for what was printed; a pipe that is full never takes it


class _Ending:
    """What the next signal does. There is one of it: a process has one handler for a signal."""

    line: str | None = None  # what is said; None: `end_at_once` was not called
    asked: Asked | None = None  # what takes the first signal instead
    children: Sequence = ()  # processes that are killed, too


def end_at_once(line: str) -> None:
    """From now on Ctrl-C and SIGTERM print a line and end this process, with the status 130 or 143.

    To be called from the main thread; again to change the line, or when a library has put a handler
    of its own there. Workers of `multiprocessing` are ended, too.
    """
    is_first, _Ending.line = _Ending.line is None, line
    if is_first:  # Blocked until all of this is there; by programs since their first statement.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, _wait)
    if is_first:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(woken,), name="interrupts", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, of SIGKILL perhaps.

    For workers of `multiprocessing`, which import the program: they would wait for ever.
    """
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def end_with_launcher() -> None:
    """Ends this process when the launcher that started it is gone; nothing without a launcher."""
    if os.environ.get(LAUNCHER) == str(os.getppid()):
        end_with_parent()


def take_along(children: Sequence[subprocess.Popen]) -> None:
    """These processes are killed when a signal ends this one; the list may still grow."""
    _Ending.children = children


class Asked:
    """Turns the first Ctrl-C or SIGTERM into a flag, to be looked at between steps.

    A second one ends the process as `end_at_once` says, or raises KeyboardInterrupt in a program
    that did not call it. A context manager; outside of the main thread, where Python cannot handle
    signals, it does nothing.

    Args:
      notice: what is said when the first signal comes.
      again: what is said when the second one ends the process.

    Attributes:
      number: the signal that came; None if none did.
    """

    def __init__(self, notice: str = _SOON, again: str = _AT_ONCE):
        self.number: int | None = None
        self.again = again
        self._notice, self._noticed, self._handled = notice, False, 0
        self._before: dict[int, object] = {}
        self._interruptible = False

    def __enter__(self) -> Asked:
        if threading.current_thread() is threading.main_thread():
            _Ending.asked = self
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error) -> None:
        if _Ending.asked is self:
            _Ending.asked = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.number is not None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Meanwhile the first signal raises KeyboardInterrupt as well.

        For Python code that may wait for ever, such as for the next frame of a camera.
        """
        self._interruptible = True
        try:
            if self.number is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def take(self, number: int) -> bool:
        """Whether this signal is the first; then it is noted, and said."""
        if self._noticed:
            return False
        self.number, self._noticed = number, True
        say(self._notice)
        return True

    def _handle(self, number: int, frame: object) -> None:
        # Where there is a thread, it takes the signal, before or after this.
        self._handled += 1
        if _Ending.line is None and not self.take(number):
            raise KeyboardInterrupt
        if self._handled > 1:
            _wait(number, frame)
        self.number = number
        if self._interruptible:
            raise KeyboardInterrupt


def _wait(number: int, frame: object) -> None:
    """Keeps the main thread where it is: the other one ends the process, and has to be first."""
    time.sleep(_PATIENCE)
    _end(number, _Ending.line)


def _watch(woken: int) -> None:
    # It was started while they were blocked. It takes those that all other threads block.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    while True:
        number = os.read(woken, 1)[0]
        asked = _Ending.asked
        if number in SIGNALS and (asked is None or not asked.take(number)):
            _end(number, _Ending.line if asked is None else asked.again)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def _end(number: int, line: str | None) -> None:
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(_FLUSH_SECONDS)
    with contextlib.suppress(Exception):
        if sys.stdout.isatty():
            os.write(1, b"\x1b[?25h\n")  # A progress bar hides the cursor.
    _end_children()
    say(f"{line}\n")
    os._exit(128 + number)


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def _end_children() -> None:
    for child in _Ending.children:
        with contextlib.suppress(Exception):
            child.kill()
    # It removes the memory that workers shared, and ends by itself.
    trackers = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(getattr(trackers, "_resource_tracker", None), "_pid", None)
    for pid in _child_ids():
        if pid != tracker:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _child_ids() -> set[int]:
    """The children of this process; where Linux does not say, those `multiprocessing` knows.

    It does not know those that are just being started.
    """
    processes = sys.modules.get("multiprocessing.process")
    known = {child.pid for child in processes.active_children()} if processes else set()
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as ids:
                known |= set(map(int, ids.read().split()))
    return known


def say(text: str) -> None:
    """Prints to the standard error, from any thread and inside of any other print."""
    # Not print: the signal may have come in the middle of one.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
