"""Means over seeds with their 95% intervals, differences of pairs, tables, bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from scipy import stats

from experiments.benchmarks.rig.suite import COLOURS
from experiments.evidence.study import NAMES, RULES, Row, Run, Study, Table


class Summary(NamedTuple):
    """The values of the runs that differ in nothing but the seed."""

    run: Run  # without the seed
    values: tuple[float, ...]  # NaN where there was none, of a run that diverged

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def half_width(self) -> float:
        """Half of the 95% interval of the mean, by Student's t; NaN for a single seed."""
        return half_width(self.values)


class Difference(NamedTuple):
    """The mean difference of pairs that share a seed, with half of its 95% interval."""

    mean: float
    half_width: float  # NaN for a single pair
    pairs: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out zero; never for a single pair."""
        return self.pairs > 1 and abs(self.mean) > self.half_width


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
        number = row[value]
        groups.setdefault(_key(run), []).append(math.nan if number is None else number)
    return [Summary(dict(key), tuple(values)) for key, values in groups.items()]


def _key(run: Run) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in run.items() if name != "seed")


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def mean_of(rows: Sequence[Row], value: str) -> Summary:
    """Over all of some rows."""
    return Summary({}, tuple(math.nan if row[value] is None else row[value] for row in rows))


def difference(
    first: Sequence[Row],
    second: Sequence[Row],
    value: str | Callable[[Row], float],
    shared: Sequence[str] = ("seed",),
) -> Difference:
    """The mean of first - second, over the pairs that agree in `shared`.

    With more than the seed in `shared`, pairs of one seed are averaged first: seeds are what
    repeats, and conditions of one seed are not independent. Values that are not finite are left out
    with their pair.
    """
    read = value if callable(value) else lambda row: row[value]
    others = {tuple(row[name] for name in shared): read(row) for row in second}
    by_first: dict[Any, list[float]] = {}
    for row in first:
        other, own = others.get(tuple(row[name] for name in shared)), read(row)
        if other is not None and own is not None and math.isfinite(own - other):
            by_first.setdefault(row["seed"], []).append(own - other)
    means = [float(np.mean(values)) for values in by_first.values()]
    if not means:
        return Difference(math.nan, math.nan, 0)
    return Difference(float(np.mean(means)), half_width(means), len(means))


def said(
    one: Difference,
    what: str,
    *,
    higher: str,
    lower: str,
    template: str = "{:+.3f}",
    points: bool = False,
) -> str:
    """A sentence with the interval, and no claim that the interval does not carry.

    Args:
      one: the difference.
      what: of which to which, such as "Sideways - backprop, test accuracy".
      higher, lower: what to conclude from a difference above and below zero.
      template: of the numbers, with a sign.
      points: whether they are parts of 1, to be said in percentage points.

    >>> said(Difference(0.5, 0.2, 5), "A - B", higher="A is higher", lower="B is higher")
    'A - B: +0.500 ± 0.200 (5 seeds): A is higher.'
    >>> said(Difference(0.1, 0.2, 5), "A - B", higher="A is higher", lower="B is higher")
    'A - B: +0.100 ± 0.200 (5 seeds): no difference shown.'
    """
    if not one.pairs:
        return f"{what}: not measured."
    factor, unit = (100, " points") if points else (1, "")
    template = "{:+.1f}" if points else template
    mean = template.format(factor * one.mean)
    if one.pairs == 1:
        return f"{what}: {mean}{unit} with one seed, without an interval: no claim."
    verdict = (higher if one.mean > 0 else lower) if one.is_shown else "no difference shown"
    margin = template.format(factor * one.half_width).lstrip("+")
    return f"{what}: {mean} ± {margin}{unit} ({one.pairs} seeds): {verdict}."


def at_an_edge(chosen: Mapping[str, tuple[float, Sequence[float]]]) -> list[str]:
    """A sentence that names whose chosen rate is the smallest or largest of those tried.

    Args:
      chosen: the chosen rate and all that were tried, by the name of what was trained.

    >>> at_an_edge({"a": (1, [1, 2, 3]), "b": (2, [1, 2, 3])})
    ['The search chose the smallest rate for a: one beyond the grid may be better there.']
    """
    sentences = []
    for edge, limit in (("smallest", min), ("largest", max)):
        names = [name for name, (rate, tried) in chosen.items() if rate == limit(tried)]
        if names:
            sentences.append(
                f"The search chose the {edge} rate for {'; '.join(names)}: one beyond the grid may "
                "be better there."
            )
    return sentences


def did_not_train(rows: Sequence[Row], chance: float) -> str:
    """How many runs of every rule end with a training accuracy below twice chance."""
    counts = []
    for rule in RULES:
        some = where(rows, rule=rule)
        below = [row for row in some if not row["training accuracy"] >= 2 * chance]
        counts.append(f"{NAMES[rule]} {len(below)} of {len(some)}")
    return (
        f"Runs that ended below {2 * chance:.0%}, twice chance, in training: {', '.join(counts)}."
    )


def table(study: Study, rows: Sequence[Row], runs: Sequence[Run]) -> Table:
    """What the runs differ in, and the mean of each with its interval."""
    summaries = by_seed(rows, runs, study.value)
    names = [
        name
        for name in (summaries[0].run if summaries else ())
        if name != "study" and len({str(one.run.get(name)) for one in summaries}) > 1
    ]
    lines = [
        [*(named(one.run[name]) for name in names), shown(one, study.format), str(len(one.values))]
        for one in summaries
    ]
    return Table(study.title, [*names, study.value, "seeds"], lines)


def named(value: Any) -> str:
    """As it is written in tables."""
    return NAMES.get(value, f"{value:g}" if isinstance(value, float) else str(value))


def print_table(one: Table, console: Console) -> None:
    """Prints it."""
    table = RichTable(title=one.title)
    for name in one.header:
        table.add_column(name, justify="left" if name in ("rule", "seeds") else "right")
    for row in one.rows:
        table.add_row(*row)
    console.print(table)


def shown(one: Summary, template: str) -> str:
    """The mean ± half of its interval, unless a value is not finite."""
    if not one.values:
        return "-"
    if math.isnan(one.mean):
        return "a run diverged"
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


def bars_by_rule(axes: Any, rows: Sequence[Row], column: str, value: str) -> None:
    """Groups of bars, a bar for every rule; a group for every value of a column."""
    kinds = list(dict.fromkeys(row[column] for row in rows))
    for shift, summaries, style in _by_rule(rows, column, value, RULES):
        axes.bar(
            [kinds.index(one.run[column]) + 0.27 * shift for one in summaries],
            [one.mean for one in summaries],
            width=0.25,
            yerr=np.nan_to_num([one.half_width for one in summaries]),
            alpha=0.75, capsize=3, **style,
        )  # fmt: skip


def lines_by_rule(
    axes: Any,
    rows: Sequence[Row],
    column: str,
    value: str,
    place: Callable[[Any, int], float],
    rules: Sequence[str] = RULES,
) -> None:
    """A line of means with their intervals for every rule.

    Args:
      axes: to draw into.
      rows: of all rules.
      column, value: the names of what is drawn, along both axes.
      place: the x of a value of the column; the second argument, -1, 0 or 1, tells rules apart.
      rules: which.
    """
    for shift, summaries, style in _by_rule(rows, column, value, rules):
        axes.errorbar(
            [place(one.run[column], shift) for one in summaries],
            [one.mean for one in summaries],
            yerr=[one.half_width for one in summaries],
            marker="o", capsize=3, **style,
        )  # fmt: skip


def _by_rule(
    rows: Sequence[Row], column: str, value: str, rules: Sequence[str]
) -> Iterator[tuple[int, list[Summary], dict[str, Any]]]:
    """For every rule how far aside it is drawn, its means, and how they look."""
    for n, rule in enumerate(rules):
        some = where(rows, rule=rule)
        runs = [{column: row[column], "seed": row["seed"]} for row in some]
        yield n - 1, by_seed(some, runs, value), {"color": COLOURS[rule], "label": NAMES[rule]}


def band(
    axes: Any,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    of_logarithms: bool = False,
    **style: Any,
) -> None:
    """A line of means over seeds in their 95% interval; `values` has a row for every seed.

    `of_logarithms` is for a logarithmic axis: geometric means, whose intervals do not reach zero.
    """
    array = np.asarray(values, float)
    array = np.log(array) if of_logarithms else array
    back = np.exp if of_logarithms else np.asarray
    mean = array.mean(axis=0)
    (line,) = axes.plot(x, back(mean), **style)
    if len(array) > 1:
        half = np.array([half_width(column) for column in array.T])
        axes.fill_between(
            x, back(mean - half), back(mean + half), color=line.get_color(), alpha=0.2, lw=0
        )


def logarithmic(axes: Any) -> None:
    """A logarithmic y-axis whose numbers are written out, in fonts that are there."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
