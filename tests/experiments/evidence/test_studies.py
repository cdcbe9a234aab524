"""What the studies conclude from rows whose numbers are known."""

import math
import re

import pytest

from experiments.evidence import catalogue
from experiments.evidence.report import page
from experiments.evidence.studies import (
    adaptation,
    direction,
    figure6,
    future,
    gradients,
    table1,
    table3,
)
from experiments.evidence.study import RULES, Scale
from tests.experiments import tiny

DOCS = tiny.ROOT / "docs" / "evidence.md"
MACHINE = {"date": "2026-01-01", "processor": "a <b> & c", "cores": 2}


def _searched(best):
    """The search of one network, won by the run `best` of every rule."""
    rows = [run | {"test accuracy": 0.5, "operations of an update": 2.0 if run["rule"] == "backprop"
                   else 1.0} for run in table1.runs(Scale())]  # fmt: skip
    for row in rows:
        if (row["rate"], row["decay"]) == best:
            row["test accuracy"] = 0.6
    return rows


def test_every_rule_is_searched_alike_and_compared_at_its_best():
    runs = table1.runs(Scale())
    grids = {
        rule: sorted((r["network"], r["dropout"], r["rate"], r["decay"]) for r in runs
                     if r["rule"] == rule) for rule in RULES
    }  # fmt: skip
    assert grids["sideways"] == grids["backprop"] == grids["pipelined_backprop"]
    assert len(grids["sideways"]) == len(set(grids["sideways"])) == 3 * 8
    everything = table1.then(Scale(seeds=5), _searched((2e-3, 1e-3)))
    compared = [run for run in everything if run["same"] != "longer"]
    assert {(run["rate"], run["decay"]) for run in compared} == {(2e-3, 1e-3)}
    assert not {run["seed"] for run in compared} & {run["seed"] for run in runs}
    assert len(compared) == 5 * (3 * 4 * 3 + 3)
    fewer = [run for run in compared if run["same"] == "compute"]
    # Backprop has twice the operations.
    assert {(run["network"], run["updates"]) for run in fewer} == {
        ("simple_cnn", 300),
        ("vgg8", 150),
    }
    longer = [run for run in everything if run["same"] == "longer"]
    assert len(longer) == 5 * 2 * 3
    assert {(run["rate"], run["decay"]) for run in longer} == {(1e-3, 1e-3)}
    assert {(run["network"], run["updates"]) for run in longer} == {
        ("simple_cnn", 2400),
        ("vgg8", 1200),
    }
    # Equal ones: the higher rate and the smaller decay.
    rows = _searched((None, None))
    assert table1.chosen(rows, "vgg8", 0.5, "backprop")["rate"] == max(table1.RATES)


@pytest.mark.parametrize(("train", "verdict"), [(0.8, "it regularises"), (0.7, "it fits less")])
def test_a_smaller_gap_with_a_lower_test_accuracy_is_no_regularisation(train, verdict):
    rows = [
        {"same": "updates", "network": "vgg8", "dropout": 0.0, "speed": 1.0, "clutter": 1,
         "rule": rule, "seed": seed, "training accuracy": 1.0 if rule == "backprop" else train,
         "test accuracy": (0.7 if rule == "backprop" else train - 0.1) + seed / 1000}
        for rule in RULES for seed in range(3)
    ]  # fmt: skip
    rows = [row | {"test accuracy": row["test accuracy"] + (row["seed"] == 1) * 1e-4 *
                   (row["rule"] == "sideways")} for row in rows]  # fmt: skip
    [gap] = [text for text in table1.answer(rows) if text.startswith("Training - test")]
    assert verdict in gap


def test_frames_until_the_error_is_back():
    """Three changes of 8 points each: the error is back at the third, at the first, never."""
    curves = {
        "sideways": [9, 9, 1.4, 1, 1, 1, 1, 1] + [1] * 8 + [9] * 8,
        "blocking": [9] * 8 + [1] * 8 + [9, 9, 9, 9, 9, 9, 1, 1],
    }
    rows = [
        {"learner": name, "optimizer": "sgd", "seed": 0, "before": 20, "after": 80,
         "frames": [0, 10, *range(20, 260, 10)], "errors": [1.0, 1.0, *map(float, curve)]}
        for name, curve in curves.items()
    ]  # fmt: skip
    found = {(one["learner"], one["change"]): (one["frames"], one["back"])
             for one in adaptation.recovery(rows)}  # fmt: skip
    assert found["sideways", "light"] == (20, True)
    assert found["blocking", "light"] == (80, False)
    assert found["sideways", "scene"] == found["blocking", "scene"] == (0, True)
    assert found["sideways", "camera"] == (80, False)
    assert found["blocking", "camera"] == (60, True)


def test_a_ratio_of_errors_has_an_interval():
    rows = [
        {"condition": "stream", "rule": rule, "seed": seed, "error": factor * 10.0**-seed,
         "error, weights frozen": factor}
        for rule, factor in (("sideways", 1.0), ("backprop", 7.0)) for seed in range(3)
    ]  # fmt: skip
    assert table3.ratio(rows, "error") == pytest.approx((7, 7, 7))
    verdict, first, *_ = table3.answer(
        [row | {"error": row["error"] * (1 + 0.1 * row["seed"] * (row["rule"] == "sideways"))}
         for row in rows]
    )  # fmt: skip
    assert "The paper's 7 is in the interval of: stream, in the stream" in verdict
    assert "the interval has the paper's 7" in first
    rows[-1]["error"] = None  # It diverged.
    mean, low, high = table3.ratio(rows, "error")
    assert mean == pytest.approx(7)
    assert math.isfinite(high - low)


def test_a_collapse_is_measured_against_stride_1_of_the_same_seed():
    rows = [
        {"kind": "favourable", "stride": stride, "rule": rule, "seed": seed,
         "training accuracy": accuracy, "test accuracy": accuracy}
        for rule in RULES for seed in range(2)
        for stride, accuracy in (("1", 0.9), ("6", 0.4 if rule == "sideways" else 0.5),
                                 ("random", 0.9))
    ]  # fmt: skip
    assert "Sideways 2 of 6, pipelined backprop 0 of 6" in figure6.answer(rows)[0]


def test_the_cosine_predicts_a_loss_that_falls_with_it():
    rows = [
        {"source": "drawn", "speed": speed, "stride": 1, "seed": seed, "relative error": [[0.0]],
         "cosine": [[0.1], [0.1]], "lowest cosine": 1 - speed / 8, "mean cosine": 1 - speed / 8,
         "lost accuracy": speed / 10 + (0.001 * seed if speed == 0.5 else 0)}
        for speed in (0.5, 1.0, 2.0, 4.0) for seed in range(3)
    ]  # fmt: skip
    [sentence] = [text for text in gradients.answer(rows) if text.startswith("Rank correlation")]
    assert "-1.00 ± 0.00 (3 seeds): the lower the cosine, the more accuracy is lost" in sentence


def test_runs_of_the_direction_task_are_told_apart():
    """Rows of before there were receivers and smaller rates have fewer names, and stay."""
    runs = direction.runs(Scale(seeds=1))
    for run in runs:
        assert [other for other in runs if run.items() <= other.items()] == [run]
    [old] = [run for run in runs if (run["rule"], run["hear the frame"]) == ("sideways", "none")]
    assert list(old) == ["study", "rule", "hear the frame", "updates", "rate", "speed", "seed"]
    rows = [run | {"test accuracy": n / 100} for n, run in enumerate(runs)]
    [table] = direction.tables(rows)
    assert [row[-2] for row in table.rows] == [f"{n}.0%" for n in range(len(runs))]
    assert len({tuple(row[:4]) for row in table.rows}) == len(direction.VARIANTS)


def test_a_painted_future_is_compared_with_repeating():
    """At every rate; a run that diverged is named and not averaged."""
    lost_one = ("sideways", "none", 0.3, 4)
    rows = [
        {"rule": rule, "hears the frame": hears, "seed": seed, "frames": 84, "repeated": [2.0] * 6,
         "rate": rate, "error": factor, "errors": [
             None if (rule, hears) == ("backprop", "none") or (rule, hears, rate, seed) == lost_one
             else factor + (seed - 2) / 1000] * 6}
        for (rule, hears), factor in zip(future.LEARNERS, (2.4, 1.8, 1.6, 1.0, 1.8), strict=True)
        for rate in future.RATES
        for seed in range(5)
    ]  # fmt: skip
    [table] = future.tables(rows)
    cells = [row[2].split(" ±")[0] for row in table.rows]
    lost = "a run diverged"
    assert cells == [
        lost,
        "1.200",
        "0.900",
        "0.900",
        "0.800",
        "0.800",
        lost,
        lost,
        "0.900",
        "0.900",
    ]
    said = future.answer(rows)
    assert len(said) == 2 * (3 + 6) + 1
    assert said[0].endswith("-0.300 ± 0.000 (4 seeds): Skip-Sideways is better.")
    assert "pipelined backprop of the same network is better" in said[1]
    assert "0.000 ± 0.000 (5 seeds): no difference shown" in said[2]
    assert "diverged at the rate 0.3 with 1 of 5 seeds" in said[3]
    assert all("-0.100 ± 0.001 (5 seeds): Skip-Sideways is better" in one for one in said[4:10])
    assert said[10].endswith("-0.300 ± 0.000 (5 seeds): Skip-Sideways is better.")
    future.picture(rows).canvas.draw()


def test_the_budgets_in_the_docs_are_those_of_the_studies():
    """And all of them fit in three hours."""
    lines = re.findall(r"^\| `(\w+)` .*\| (\d+) \|$", DOCS.read_text(), re.MULTILINE)
    budgets = {name: int(minutes) for name, minutes in lines}
    assert list(budgets) == list(catalogue.STUDIES)  # in the order of `all`
    studies = {name: catalogue.study_of(name) for name in budgets}
    assert budgets == {name: study.minutes for name, study in studies.items()}
    assert sum(budgets.values()) <= catalogue.ALL_MINUTES


def test_a_search_alone_is_no_answer():
    """A run that was stopped in its first stage has a page all the same."""
    searched = [run | {"mean error": 0.01} for run in adaptation.runs(Scale())]
    for name, rows in (("table1", _searched((2e-3, 1e-3))), ("adaptation", searched)):
        study = catalogue.study_of(name)
        rows = [row | {"machine": MACHINE} for row in rows]
        text = page.page([page.Section(name, study, "plan", rows, 0, complete=False)])
        assert "No comparison yet: the runs that are there are of a search." in text


def test_what_is_written_into_the_page_is_text():
    """Names and machines come from files; none of it is HTML."""
    study = catalogue.study_of("figure6")
    rows = [
        {"study": "figure6", "kind": "favourable", "stride": "1", "rule": rule, "seed": 0,
         "training accuracy": 0.5, "test accuracy": 0.5, "machine": MACHINE}
        for rule in RULES
    ]  # fmt: skip
    section = page.Section("figure6", study, "plan <script>", rows, 3, complete=False)
    text = page.page([section])
    assert "a &lt;b&gt; &amp; c" in text
    assert "plan &lt;script&gt;" in text
    assert "<script" not in text
    assert "3 runs or more are missing" in text
    assert "with runs missing: figure6" in text
