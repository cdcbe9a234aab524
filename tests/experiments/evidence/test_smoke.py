"""Every WHAT on tiny networks, and the report of all of them; the script as users run it."""

import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from experiments.evidence import catalogue, full
from experiments.evidence.pace import Pace
from experiments.evidence.report import page
from experiments.evidence.study import RULES
from experiments.examples import videos
from tests.experiments import tiny

OLD = ("direction", "online", "quickstart", "map")  # networks of their full size
NEW = tuple(name for name in catalogue.STUDIES if name not in OLD)
SMOKE = catalogue.Settings(smoke=True)


def _silent(seconds):
    return Pace(seconds=seconds)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, quick_compile_of_module):
    """All new studies, computed once: they share their programs."""
    folder = tmp_path_factory.mktemp("evidence")
    videos.write(folder / "videos")
    settings = SMOKE._replace(videos=str(folder / "videos"))
    catalogue.reproduce(NEW, folder, settings, _silent, lambda text: None)
    page.write(folder, settings)
    return folder


@pytest.mark.parametrize("name", NEW)
def test_every_study_has_all_rules_and_says_what_they_show(workdir, name):
    study = catalogue.study_of(name)
    there = catalogue.rows_of(workdir, name, SMOKE)
    assert there.complete
    assert there.missing == 0
    if name not in ("gradients", "adaptation"):
        assert {row["rule"] for row in there.rows} == set(RULES)
    console = Console(record=True)
    assert study.answer(there.rows)
    console.print(study.answer(there.rows))
    assert "better" not in console.export_text()  # One seed carries no claim.
    study.picture(there.rows).canvas.draw()


def test_real_videos_are_a_part_of_it(workdir):
    for name in ("gradients", "adaptation"):
        rows = json.loads((workdir / f"{name}.json").read_text())["rows"]
        assert {row["source"] for row in rows} == {"drawn", "real"}
    rows = json.loads((workdir / "table1.json").read_text())["rows"]
    assert {row["rule"] for row in rows if row["same"] == "real"} == set(RULES)
    assert "<td>real</td>" in (workdir / "report" / "index.html").read_text()


def test_gradients_of_a_constant_video_are_exact(workdir):
    rows = json.loads((workdir / "gradients.json").read_text())["rows"]
    [still] = [row for row in rows if row.get("speed") == 0]
    [moving] = [row for row in rows if row.get("speed") == 1]
    assert max(map(max, still["relative error"])) < 1e-5
    assert max(map(max, moving["relative error"])) > 1e-2
    assert moving["cosine"][-1][-1] == pytest.approx(1, abs=1e-5)  # that of the top module is


def test_the_report_is_one_page(workdir):
    text = (workdir / "report" / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)  # Nothing else is needed.
    assert text.count("data:image/png;base64,") == len(NEW)
    assert len(text) < 5e6
    assert 'name="viewport"' in text
    assert re.search(r"<td class=paper>42\.16%</td>", text)
    for name in NEW:
        assert f'<section id="{name}">' in text
        assert f'href="#{name}"' in text
    for name in OLD:
        assert f'<section id="{name}">' not in text
    assert f"not measured: {', '.join(n for n in catalogue.STUDIES if n in OLD)}" in text
    assert "Planned statistics" in text


def test_what_is_there_is_not_computed_again(workdir):
    before = {file: file.stat().st_mtime_ns for file in workdir.glob("*.json")}
    settings = SMOKE._replace(videos=str(workdir / "videos"))
    catalogue.reproduce(NEW, workdir, settings, _silent, lambda text: None)
    assert before == {file: file.stat().st_mtime_ns for file in workdir.glob("*.json")}


def test_without_time_nothing_begins_and_the_report_says_so(tmp_path):
    said = []
    settings = SMOKE._replace(minutes=0.0)
    catalogue.reproduce(NEW, tmp_path, settings, _silent, said.append)
    assert not said
    text = page.write(tmp_path, settings).read_text()
    assert text.count("not measured yet") == len(catalogue.STUDIES)


def test_the_full_protocol_says_what_is_to_be_run(tmp_path, capsys):
    assert full.run(tmp_path, "", 1) == 1
    printed = capsys.readouterr()
    commands = printed.out.splitlines()
    assert len(commands) == 5 * 2 * 4 * 3  # networks on data sets, rates, decays, rules
    assert len(set(commands)) == len(commands)
    assert "none started: no --data_dir" in printed.err
    assert full.run(tmp_path, str(tmp_path), 1) == 1
    assert "has no hmdb51 and no ucf101" in capsys.readouterr().err


def _reproduce(*words, timeout=900):
    return subprocess.run(
        [sys.executable, "experiments/reproduce.py", *words], cwd=tiny.ROOT, capture_output=True,
        text=True, check=False, timeout=timeout, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_an_unknown_what(tmp_path):
    done = _reproduce("tabel1", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "Error: unknown WHAT 'tabel1'; did you mean 'table1'?"
    )


@pytest.mark.full
@pytest.mark.parametrize("name", OLD)
def test_the_script(tmp_path, name):
    done = _reproduce(name, "report", "--seeds=1", "--updates=2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "pipelined backprop" in done.stdout
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert {row["rule"] for row in rows} - {"tsm"} == set(RULES)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert f'<section id="{name}">' in (tmp_path / "report" / "index.html").read_text()
