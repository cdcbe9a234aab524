"""The progress of a run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import time

from rich import progress
from rich.console import Console


class Clock:
    """Steps per second of training alone: compilation and evaluation do not count."""

    def __init__(self):
        self._seconds = 0.0
        self._steps = 0
        self._since: float | None = None

    def start(self) -> None:
        """Goes on, or starts, at the beginning of a step."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Pauses, after the results of a step have arrived."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def count(self) -> None:
        """One more step; it counts if the clock is running."""
        self._steps += self._since is not None

    @property
    def steps_per_second(self) -> float | None:
        """None before the first whole step."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        seconds = self._seconds + running
        return self._steps / seconds if self._steps and seconds else None


class Progress:
    """Shows the step, some metrics, steps/s and the time left; a context manager.

    Args:
      console: where to.
      start: the step at which training starts or resumes.
      num_steps: how many there are in all.
      line_every: how many steps go by between two lines, where there is no terminal.
    """

    def __init__(self, console: Console, start: int, num_steps: int, line_every: int):
        self._console = console
        self._num_steps = num_steps
        self._line_every = line_every
        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[shown]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=num_steps, completed=start, shown="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """What is being done other than training, next to the bar."""
        self._bar.update(self._task, description=what)

    def update(self, step: int, metrics: dict[str, float], speed: float | None) -> None:
        """Shows the results of a step."""
        left = "?" if speed is None else _duration((self._num_steps - step) / speed)
        speed = "-" if speed is None else f"{speed:.3g} steps/s"
        shown = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        shown = f"{shown}  {speed}  {left} left"
        self._bar.update(self._task, completed=step, shown=shown)
        if self._bar.disable and (step % self._line_every == 0 or step == self._num_steps):
            self._console.print(
                f"step {step}/{self._num_steps}  {shown}", highlight=False, soft_wrap=True
            )

    def tested(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        """Says the results of an evaluation in a line that stays."""
        shown = "  ".join(f"{k} {v:.3g}" for k, v in metrics.items() if isinstance(v, float))
        line = f"step {step}/{self._num_steps}  test: {shown}{'  the best so far' * is_best}"
        self._console.print(line, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    """As hours, minutes and seconds.

    >>> _duration(75)
    '0:01:15'
    """
    return str(datetime.timedelta(seconds=round(seconds)))
