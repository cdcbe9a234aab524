"""Why a run ends early: a signal asked for it, or a number is not finite."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

import numpy as np
from jax.experimental import multihost_utils


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


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag, to be looked at between steps.

    A second Ctrl-C raises KeyboardInterrupt, as usual. A context manager; outside of the main
    thread, where Python cannot handle signals, it does nothing.
    """

    def __init__(self):
        self.number: int | None = None
        self._before = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.number is not None

    def agreed(self) -> bool:
        """Whether any process has been asked to stop; all have to call this at the same step."""
        numbers = multihost_utils.process_allgather(np.int32(self.number or 0))
        self.number = int(numbers.max()) or None
        return bool(self)

    def _handle(self, number, frame) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        # Not print: the signal may have come in the middle of one.
        os.write(
            2, b"\nStopping soon, between two steps. Ctrl-C again stops at once, without saving.\n"
        )


@contextlib.contextmanager
def hidden_from_children() -> Iterator[None]:
    """Processes that are started meanwhile never notice Ctrl-C, which a terminal sends to all.

    Otherwise the workers that make batches would end before the step that still needs one.
    """
    # A new process inherits which signals its parent blocks. The parent still gets them: another
    # of its threads does, or this one afterwards. Starting this tracker, as the first worker would,
    # unblocks them.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
