"""experiments/torture.py as users run it; its larger counts are in docs/reliability.md."""

import json
import os
import subprocess
import sys

import pytest

from experiments.trials import small
from tests.experiments import tiny


def torture(tmp_path, *arguments):
    command = [sys.executable, "experiments/torture.py", *arguments,
               f"--json={tmp_path / 'rows.json'}", f"--folder={tmp_path / 'runs'}"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=550, check=False
    )
    rows = tmp_path / "rows.json"
    return done, json.loads(rows.read_text())["rows"] if rows.exists() else []


def test_damaged_videos_in_two_pieces(tmp_path):
    done, rows = torture(tmp_path, "videos", "--count=6")
    assert done.returncode == 0, done.stderr
    assert [row["number"] for row in rows] == list(range(6))
    assert "flipped mpeg4" in done.stdout
    done, more = torture(tmp_path, "videos", "--count=8")
    assert done.stderr.count("passed") == 2  # The others are there.
    assert more[:6] == rows
    assert len(more) == 8


def test_an_unknown_trial(tmp_path):
    done, _ = torture(tmp_path, "vidoes")
    assert done.returncode == 1
    assert (
        "give one of kills, kills_of_processes, lost, devices, disk, stops, videos, interrupts"
        in done.stdout + done.stderr
    )


@pytest.mark.full
@pytest.mark.parametrize("trial", ["kills", "kills_of_processes", "lost", "devices", "stops"])
def test_one_trial(trial, tmp_path):
    done, rows = torture(tmp_path, trial, "--count=1")
    assert done.returncode == 0, done.stderr
    assert [row["failed"] for row in rows] == [False]


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_runs_full(tmp_path):
    done, rows = torture(tmp_path, "disk", "--count=2")
    if "cannot be mounted" in done.stderr:
        pytest.skip("a small file system cannot be mounted here")
    assert done.returncode == 0, done.stderr
    assert [row["failed"] for row in rows] == [False] * 2
    assert any(row["was_full"] for row in rows)


def test_interrupts_go_on_where_they_stopped(tmp_path):
    row = {"what": "interrupts", "program": "live", "signal": "SIGINT", "seconds": 0.1,
           "left_over": 0, "failed": False}  # fmt: skip
    rows = [row | {"after": after} for after in (0.2, 0.3)]
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    flags = "--programs=live", "--signals=SIGINT", "--first=0.2", "--every=0.1", "--last=0.3"
    done, more = torture(tmp_path, "interrupts", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert more == rows
    assert "live SIGINT" in done.stdout


@pytest.mark.full
def test_another_run_is_not_taken_for_the_same(tmp_path):
    for seed in (0, 1):
        command = small.command(tmp_path / str(seed), seed=seed, train__num_steps=2)
        assert small.start(command, tmp_path / "log").wait(200) == 0
    first, second = (small.left_by(tmp_path / str(seed)) for seed in (0, 1))
    assert first.state.keys() == second.state.keys()
    assert first.state != second.state
    assert first.metrics != second.metrics
    assert first == small.left_by(tmp_path / "0")
