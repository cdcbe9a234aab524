"""Why a run ends early: a signal asked for it, or a number is not finite."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.processes.interrupts import SIGNALS, Asked, say

AGREE_SECONDS = 3.0  # between two messages to all; what is saved then has to be there within 10
LATE_SECONDS = 9.0  # after a signal


class Stopped(Exception):
    """Ctrl-C or SIGTERM; the run has been saved.

    Attributes:
      signal_number: which of the two.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class NonFiniteError(RuntimeError):
    """The loss, the gradient or the parameters are no longer finite.

    Attributes:
      step: the weight update at which it was seen, counted from 1.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class StopSignal(Asked):
    """The flag that Ctrl-C or SIGTERM sets, to be looked at between steps.

    Slurm and Kubernetes kill a run that takes long to save. So it says, after `LATE_SECONDS`, what
    it still waits for.

    Attributes:
      waits_for: the end of that sentence.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits_for = "the step that was running has not ended"
        self._late = threading.Timer(LATE_SECONDS, self._say_why)
        self._late.daemon = True

    def __exit__(self, *error) -> None:
        self._late.cancel()
        super().__exit__(*error)

    def take(self, number: int) -> bool:
        """Whether this signal is the first; then it is noted, and said."""
        is_first = super().take(number)
        if is_first:
            self._late.start()
        return is_first

    def _say_why(self) -> None:
        say(f"\nNot saved {LATE_SECONDS:g} s after the signal: {self.waits_for}.\n")


class Agreement:
    """Whether any process has been asked to stop: all of them stop at the same step.

    To agree takes a message to all. So they ask every few seconds, and tell one another how many
    steps that are.

    Args:
      stop: the flag of this process, set when any other has been asked.
    """

    def __init__(self, stop: StopSignal):
        self._stop, self._calls, self._calls_left = stop, 1, 1
        self._since = time.monotonic()

    def reached(self, at_most: int) -> bool:
        """Whether to stop; all processes call this after the same steps.

        Args:
          at_most: in how many calls to ask again, even if they take less than a few seconds.
        """
        if jax.process_count() == 1:
            return bool(self._stop)
        self._calls_left -= 1
        if self._calls_left:
            return False
        seconds = max(time.monotonic() - self._since, 1e-6)
        # Not more than twice as many as before: there may be none with a checkpoint among them yet.
        calls = min(min(AGREE_SECONDS / seconds, 2.0) * self._calls, at_most)
        self._stop.waits_for = "other processes have not come to the end of the same step"
        told = multihost_utils.process_allgather(np.array([self._stop.number or 0, -calls], "f4"))
        number, fewest = told.max(axis=0)
        if number:  # Otherwise a signal may have come meanwhile, that the others do not know of.
            self._stop.number = int(number)
        self._calls = self._calls_left = max(int(-fewest), 1)
        self._since = time.monotonic()
        return bool(number)


@contextlib.contextmanager
def hidden_from_children() -> Iterator[None]:
    """Processes that are started meanwhile never notice Ctrl-C and SIGTERM.

    A terminal sends the one to all, Slurm the other: the workers that make batches would end before
    the step that still needs one.
    """
    # A new process inherits which signals its parent blocks. The parent still gets them: another
    # of its threads does, or this one afterwards. Starting the tracker, as the first worker would,
    # unblocks them.
    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Starts the process that removes the shared memory of workers that were killed.

    It warns when it has something to remove. After Ctrl-C there is, as there should be.
    """
    sys.warnoptions.append("ignore:resource_tracker")  # A new interpreter gets these.
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """Raises NonFiniteError if a metric is not finite, or "finite", of the weights, is false."""
    for name, value in metrics.items():
        if not np.isfinite(value):
            what = {"grad_norm": "norm of the gradients"}.get(name, name)
            raise NonFiniteError(f"the {what} is {value} at step {step}", step)
    if not metrics["finite"]:
        raise NonFiniteError(
            f"the parameters or the optimizer's moments are not finite after step {step}", step
        )
