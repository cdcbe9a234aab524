"""Means over seeds with their 95% intervals, as a table and as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from experiments.benchmarks.rig.suite import COLOURS
from experiments.comparisons.study import NAMES, Row, Run, Study


class Summary(NamedTuple):
    """The values of the runs that differ in nothing but the seed."""

    run: Run  # without the seed
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def half_width(self) -> float:
        """Half of the 95% interval of the mean, by Student's t; NaN for a single seed."""
        return half_width(self.values)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean, by Student's t; NaN for a single value.

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    count = len(values)
    if count < 2:
        return math.nan
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def by_seed(rows: Sequence[Row], runs: Sequence[Run], value: str) -> list[Summary]:
    """Summaries in the order of the runs; `value` is the name of the number."""
    groups: dict[tuple, list[float]] = {}
    for row, run in zip(rows, runs, strict=True):
        groups.setdefault(_key(run), []).append(row[value])
    return [Summary(dict(key), tuple(values)) for key, values in groups.items()]


def _key(run: Run) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in run.items() if name != "seed")


def print_table(study: Study, summaries: Sequence[Summary], console: Console) -> None:
    """Prints what the runs differ in, and the mean of each with its interval."""
    table = Table(title=study.title)
    names = [
        name
        for name in summaries[0].run
        if name != "study" and len({str(one.run.get(name)) for one in summaries}) > 1
    ]
    for name in names:
        table.add_column(name)
    table.add_column(study.value, justify="right")
    table.add_column("seeds", justify="right")
    for one in summaries:
        cells = [NAMES.get(one.run[name], str(one.run[name])) for name in names]
        table.add_row(*cells, shown(one, study.format), str(len(one.values)))
    console.print(table)


def shown(one: Summary, template: str) -> str:
    """The mean ± half of its interval."""
    width = one.half_width
    margin = "" if math.isnan(width) else f" ± {template.format(width)}"
    return template.format(one.mean) + margin


def bars(axes: Any, summaries: Sequence[Summary], names: Sequence[str]) -> None:
    """Bars of means with their intervals, and a dot for every seed."""
    places = np.arange(len(summaries))
    axes.bar(
        places,
        [one.mean for one in summaries],
        yerr=[np.nan_to_num(one.half_width) for one in summaries],
        color=[COLOURS[one.run["rule"]] for one in summaries],
        alpha=0.75,
        capsize=4,
    )
    for place, one in zip(places, summaries, strict=True):
        spread = np.linspace(-0.15, 0.15, len(one.values)) if len(one.values) > 1 else [0.0]
        axes.plot(place + np.asarray(spread), one.values, "k.", markersize=5)
    axes.set_xticks(places, names, fontsize=8)
