"""How far a study is, how long it will take, and when it has to stop."""

from __future__ import annotations

import datetime
import time

from rich.console import Console


class Pace:
    """Says after every run what is left, and whether there is time for another.

    Args:
      console: where to; None says nothing.
      seconds: after which no run begins; None: any number.
    """

    def __init__(self, console: Console | None = None, seconds: float | None = None):
        self._console = console
        self._end = None if seconds is None else time.monotonic() + seconds
        self._seconds: dict[str, list[float]] = {}  # of the runs of this session, by title

    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() >= self._end

    def left(self) -> float | None:
        """Seconds; None for any number."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def ran(self, title: str, done: int, total: int, seconds: float) -> None:
        """One more run is in the file."""
        all_seconds = self._seconds.setdefault(title, [])
        all_seconds.append(seconds)
        if self._console is None:
            return
        left = (total - done) * sum(all_seconds) / len(all_seconds)
        text = f"{title}: run {done} of {total}, {seconds:.1f} s; {duration(left)} left of these"
        if (time_left := self.left()) is not None:
            text += f", {duration(time_left)} of the time"
        self._console.print(text, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """As hours, minutes and seconds.

    >>> duration(3675)
    '1:01:15'
    """
    return str(datetime.timedelta(seconds=round(seconds)))
