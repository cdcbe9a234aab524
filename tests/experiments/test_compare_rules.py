"""Comparisons of the rules: rows in a file, means with intervals, and the script itself."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments.comparisons import depth_and_speed, direction, quickstart, study, summary
from tests.experiments import tiny


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
    summary.print_table(one, [sideways, backprop], console)
    assert "20.0 ± 19.6" in console.export_text()
    assert np.isnan(summary.half_width([1.0]))


@pytest.mark.full
def test_backprop_gets_fewer_updates_at_the_same_compute():
    """11 of 12 frames at the second module are back-propagated, with Sideways 3."""
    same = [run for run in quickstart.runs(study.Scale(seeds=1)) if run["rule"] == "backprop"]
    assert same[0]["updates"] == 1000
    assert 400 < same[1]["updates"] < 800
    assert len(quickstart.runs(study.Scale(seeds=1))) == 4


def test_where_there_is_no_gap_nothing_is_closed():
    assert np.isnan(depth_and_speed.closed(dict.fromkeys(study.RULES, 0.5)))


@pytest.mark.full
@pytest.mark.parametrize("name", ["direction", "quickstart", "online", "map"])
def test_the_script(tmp_path, name):
    file = tmp_path / f"{name}.json"
    command = [sys.executable, "experiments/compare_rules.py", f"--study={name}", "--seeds=1",
               "--updates=2", f"--json={file}"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=900,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pipelined backprop" in done.stdout
    assert {row["rule"] for row in json.loads(file.read_text())["rows"]} == set(study.RULES)
    assert file.with_suffix(".png").stat().st_size > 5000
