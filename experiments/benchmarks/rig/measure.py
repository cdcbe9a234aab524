"""Measuring: programs are compiled first, run in turn, and compared by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import jax
from rich.progress import Progress


def compiled(function: Callable, *arguments) -> jax.stages.Compiled:
    """`function`, compiled for these arguments or shapes; calling it never compiles again."""
    return jax.jit(function).lower(*arguments).compile()


def temporary_bytes(program: jax.stages.Compiled) -> int:
    """Bytes per device that the program needs beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one call, until its arrays are computed."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def seconds(
    programs: Mapping[str, Callable[[], object]], *, rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of every call, by name.

    The programs run in turn, one call each per round, every round in another order: a machine whose
    speed drifts, as shared ones do, affects them alike. Compare them round by round.
    """
    names = list(programs)
    times: dict[str, list[float]] = {name: [] for name in names}
    task = progress.add_task("measuring", total=rounds + 1)
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds_of(programs[name]))
        progress.advance(task)
    progress.remove_task(task)
    return {name: all_times[1:] for name, all_times in times.items()}  # The first is the warm-up.


def clips_of(row: Mapping[str, object]) -> str:
    """The clips of a row, for the title of a picture.

    >>> clips_of({"batch": 8, "frames": 64, "size": 32})
    'batch 8, 64 frames, 32x32'
    """
    return f"batch {row['batch']}, {row['frames']} frames, {row['size']}x{row['size']}"


def ratio(times: list[float], baseline: list[float]) -> float:
    """The median of the ratios of two programs, round by round; drift of the machine cancels."""
    return statistics.median(a / b for a, b in zip(times, baseline, strict=True))
