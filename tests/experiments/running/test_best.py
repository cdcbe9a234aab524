"""The best checkpoint is that of the best evaluation, whatever happens to the run."""

import io
import json

import pytest
from rich.console import Console

from experiments.jobs.classification.accuracy import Evaluation
from experiments.jobs.classification.job import train_and_evaluate
from experiments.running import run
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
ACCURACIES = {1: 0.2, 2: 0.6, 3: 0.4, 4: 0.6, 5: 0.1}


@pytest.fixture
def scored(monkeypatch):
    """The accuracy of an evaluation is that of `ACCURACIES`: tiny networks do not learn."""
    step = 0

    def score(self):
        nonlocal step
        return ACCURACIES[step]

    tested = run.loop._Loop._test

    def test(self, **options):
        nonlocal step
        step = self._step
        return tested(self, **options)

    monkeypatch.setattr(Evaluation, "score", score)
    monkeypatch.setattr(run.loop._Loop, "_test", test)


def train(workdir, num_steps, console=None):
    config = tiny.config(train__num_steps=num_steps, train__eval_every=1)
    return train_and_evaluate(config, workdir, console or Console(quiet=True))


def kept(workdir):
    return sorted(int(one.name) for one in (workdir / "best").iterdir() if one.name.isdecimal())


@pytest.mark.usefixtures("scored")
def test_the_first_of_the_best_is_kept_over_resumes(tmp_path):
    assert train(tmp_path, 1).best_step == 1
    assert kept(tmp_path) == [1]
    assert train(tmp_path, 3).best_step == 2
    summary = train(tmp_path, 5)
    assert (summary.best_step, summary.best_accuracy) == (2, pytest.approx(0.6))
    assert kept(tmp_path) == [2]
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] == 2


@pytest.mark.usefixtures("scored")
def test_evaluations_are_told_line_by_line(tmp_path):
    out = io.StringIO()
    train(tmp_path, 3, Console(file=out, width=200))
    said = [line for line in out.getvalue().splitlines() if "test:" in line]
    assert [line.split()[1] for line in said] == ["1/3", "2/3", "3/3"]
    assert all(" loss " in line and " ece " in line for line in said)
    assert [line.endswith("the best so far") for line in said] == [True, True, False]


def test_the_numbers_that_are_printed_are_those_of_the_log(tmp_path):
    out = io.StringIO()
    config = tiny.config(train__num_steps=6, train__log_every=3, train__eval_every=0)
    train_and_evaluate(config, tmp_path, Console(file=out, width=200))
    printed = [
        line.split() for line in out.getvalue().splitlines()
        if line.startswith("step") and "test:" not in line
    ]  # fmt: skip
    logged = [line for line in tiny.lines(tmp_path) if line["split"] == "train"]
    assert [words[1] for words in printed] == ["3/6", "6/6"]
    for words, line in zip(printed, logged, strict=True):
        said = dict(zip(words[2:6:2], words[3:6:2], strict=True))
        assert said == {name: f"{line[name]:.3g}" for name in ("loss", "accuracy")}


def test_a_damaged_one_does_not_count(tmp_path):
    train(tmp_path, 1)
    files = (tmp_path / "best" / "1" / "train_state").rglob("d/*")
    file = max(files, key=lambda one: one.stat().st_size)
    file.write_bytes(b"")
    assert train(tmp_path, 2).best_step == 2
    assert kept(tmp_path) == [2]
