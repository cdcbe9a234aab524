"""Studies: rows in a file, means with intervals, differences without claims they do not carry."""

import json
import math

import numpy as np
import pytest
from rich.console import Console

from experiments.evidence import study, summary
from experiments.evidence.pace import Pace
from experiments.evidence.studies import direction, quickstart
from experiments.workdir.files import read_rows


def _made_up(calls):
    """A study of two rules whose numbers are known: the seed, and 10 times the seed."""

    def runs(scale):
        return [
            {"study": "made up", "rule": rule, "updates": scale.updates or 3, "seed": seed}
            for seed in range(scale.seeds)
            for rule in ("sideways", "backprop")
        ]

    def measure(run):
        calls.append(run)
        return {"value": float(run["seed"] * (10 if run["rule"] == "backprop" else 1))}

    return study.Study("Made up", runs, measure, "value", "{:.1f}", direction.picture)


def test_runs_that_are_in_the_file_are_not_computed_again(tmp_path):
    calls, file = [], tmp_path / "rows.json"
    one = _made_up(calls)
    study.compute(one, study.Scale(seeds=2), file)
    assert len(calls) == 4
    rows = study.compute(one, study.Scale(seeds=3), file)
    assert [run["seed"] for run in calls[4:]] == [2, 2]
    assert [row["seed"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert {"processor", "jax", "date"} <= set(rows[0]["machine"])
    study.compute(one, study.Scale(seeds=1, updates=7), file)  # Other runs.
    assert len(calls) == 8
    file.write_text("no")
    with pytest.raises(ValueError, match="no file of this program"):
        study.compute(one, study.Scale(), file)


def test_means_have_intervals_of_students_t(tmp_path):
    one = _made_up([])
    scale = study.Scale(seeds=5)
    rows = study.compute(one, scale, tmp_path / "rows.json")
    sideways, backprop = summary.by_seed(rows, one.runs(scale), "value")
    assert (sideways.run["rule"], sideways.mean, backprop.mean) == ("sideways", 2.0, 20.0)
    # t = 2.776 for four degrees of freedom; the deviation of 0 to 4 is 1.581.
    assert sideways.half_width == pytest.approx(2.7764 * np.sqrt(2.5) / np.sqrt(5), rel=1e-4)
    console = Console(record=True, width=80)
    summary.print_table(summary.table(one, rows, one.runs(scale)), console)
    assert "20.0 ± 19.6" in console.export_text()
    assert np.isnan(summary.half_width([1.0]))


@pytest.mark.full
def test_backprop_gets_fewer_updates_at_the_same_compute():
    """11 of 12 frames at the second module are back-propagated, with Sideways 3."""
    same = [run for run in quickstart.runs(study.Scale(seeds=1)) if run["rule"] == "backprop"]
    assert same[0]["updates"] == 1000
    assert 400 < same[1]["updates"] < 800
    assert len(quickstart.runs(study.Scale(seeds=1))) == 4


def test_rows_of_before_there_were_seconds_are_taken_over(tmp_path):
    """Files of compare_rules.py: the same keys, without the time that a run took."""
    calls, file = [], tmp_path / "rows.json"
    one = _made_up(calls)
    study.compute(one, study.Scale(seeds=2), file)
    rows = json.loads(file.read_text())["rows"]
    assert all(row.pop("seconds") >= 0 for row in rows)
    file.write_text(json.dumps({"rows": rows}))
    assert study.compute(one, study.Scale(seeds=2), file) == rows
    assert len(calls) == 4


def test_a_run_that_is_killed_leaves_those_before_it(tmp_path):
    calls, file = [], tmp_path / "rows.json"
    one = _made_up(calls)

    def measure(run):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return one.measure(run)

    with pytest.raises(KeyboardInterrupt):
        study.compute(one._replace(measure=measure), study.Scale(seeds=2), file)
    assert len(json.loads(file.read_text())["rows"]) == 3
    assert len(study.compute(one, study.Scale(seeds=2), file)) == 4
    assert len(calls) == 4


def test_no_run_begins_after_the_time(tmp_path):
    calls, file = [], tmp_path / "rows.json"
    one, scale = _made_up(calls), study.Scale(seeds=2)
    assert study.compute(one, scale, file, Pace(seconds=0)) == []
    assert not calls
    assert study.found(one, scale, []) == study.Found([], 4, complete=False)
    study.compute(one, scale, file, Pace(seconds=60))
    assert study.found(one, scale, read_rows(file)).complete


def test_runs_that_depend_on_others_come_after_all_of_them(tmp_path):
    calls, file = [], tmp_path / "rows.json"

    def then(scale, rows):
        assert len(rows) == 4
        best = max(rows, key=lambda row: row["value"])
        return [
            {"study": "then", "rule": best["rule"], "seed": seed} for seed in range(scale.seeds)
        ]

    one = _made_up(calls)._replace(then=then)
    rows = study.compute(one, study.Scale(seeds=2), file)
    assert [row["study"] for row in rows] == ["made up"] * 4 + ["then"] * 2
    assert {row["rule"] for row in rows[4:]} == {"backprop"}
    study.compute(one, study.Scale(seeds=2), file)
    assert len(calls) == 6


def test_what_is_not_finite_becomes_none_and_no_mean(tmp_path):
    one = _made_up([])._replace(measure=lambda run: {"value": math.inf, "more": [math.nan, 1.0]})
    [row, _] = study.compute(one, study.Scale(seeds=1), tmp_path / "rows.json")
    assert (row["value"], row["more"]) == (None, [None, 1.0])
    assert np.isnan(summary.mean_of([row], "value").mean)
    assert summary.difference([row], [row], "value").pairs == 0


def _rows(*values, **keys):
    return [{"seed": seed, "value": value, **keys} for seed, value in enumerate(values)]


def test_a_difference_is_of_pairs_with_one_seed():
    """Its interval is that of the differences, however much the seeds differ."""
    first, second = _rows(10.0, 21.0, 32.5), _rows(9.0, 19.9, 31.6, 7.0)
    one = summary.difference(first, list(reversed(second)), "value")
    assert one.pairs == 3
    assert one.mean == pytest.approx(1.0)
    assert one.half_width == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-3)


def test_conditions_of_a_seed_count_once():
    first = _rows(1.0, 2.0, place="a") + _rows(3.0, 4.0, place="b")
    second = _rows(0.0, 0.0, place="a") + _rows(0.0, 0.0, place="b")
    one = summary.difference(first, second, "value", ("seed", "place"))
    assert (one.pairs, one.mean) == (2, 2.5)
    assert one.half_width == pytest.approx(summary.half_width([2.0, 3.0]))


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (summary.Difference(0.3, 0.2, 5), "+0.300 ± 0.200 (5 seeds): more."),
        (summary.Difference(-0.3, 0.2, 5), "-0.300 ± 0.200 (5 seeds): less."),
        (summary.Difference(0.2, 0.3, 5), "+0.200 ± 0.300 (5 seeds): no difference shown."),
        (summary.Difference(0.3, math.nan, 1), "+0.300 with one seed, without an interval: no"),
        (summary.Difference(math.nan, math.nan, 0), "not measured."),
    ],
)
def test_no_claim_without_an_interval_that_leaves_out_zero(difference, verdict):
    sentence = summary.said(difference, "A - B", higher="more", lower="less")
    assert sentence.startswith(f"A - B: {verdict}")
    claims = sentence.endswith(("more.", "less."))
    assert claims == difference.is_shown
