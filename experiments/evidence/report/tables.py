"""The tables and the answer of a study, from the rows that are there."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.evidence import summary
from experiments.evidence.study import Row, Study, Table

_ASIDE = ("seconds", "machine")


def tables_of(study: Study, rows: Sequence[Row]) -> list[Table]:
    """Those of the study, or one of means by run."""
    if not rows:
        return []
    if study.tables is not None:
        return study.tables(rows)
    keys = list(run_of(study, rows[0]))
    return [summary.table(study, rows, [{name: row[name] for name in keys} for row in rows])]


def run_of(study: Study, row: Row) -> Row:
    """What tells a row from others: all that is in front of what was measured."""
    names = list(row)
    return {name: row[name] for name in names[: names.index("seed") + 1] if name not in _ASIDE}


def answer_of(study: Study, rows: Sequence[Row]) -> list[str]:
    """What the numbers say, by the rule that the study was written with; sentences."""
    if not rows or study.answer is None:
        return []
    return study.answer(rows)
