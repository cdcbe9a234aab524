"""Table 3 as users run it, tiny; what is in the file already is not computed again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.jobs.autoencoding import comparison
from experiments.jobs.autoencoding.report import draw_milestones
from tests.experiments import tiny


def _run(file, *flags):
    command = [sys.executable, "experiments/table3.py", "--sources=moving_solids",
               "--size=16", "--widths=4,4,4,4,4", f"--json={file}", *flags]  # fmt: skip
    return subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=200,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_table3(tmp_path):
    file = tmp_path / "table3.json"
    first = _run(file, "--frames=528", "--rates=0.1", "--seeds=1")
    assert first.returncode == 0, first.stderr
    # One milestone more does not cost those that are there; the search ends earlier.
    more = ["--frames=1056,528", "--search_frames=528", "--rates=0.1,1e-9", "--seeds=1"]
    done = _run(file, *more)
    assert done.returncode == 0, done.stderr
    assert "copying" in done.stdout
    rows = json.loads(file.read_text())["rows"]
    assert sorted(
        (row["rule"], row["learning_rate"], row["arriving"], row["protocol"]) for row in rows
    ) == sorted(
        (rule, *run, protocol)
        for rule in ("backprop", "sideways") for run in ((1e-9, 528), (0.1, 528), (0.1, 1056))
        for protocol in ("in_stream", "held_out", "copying")
    )  # fmt: skip
    rows = [row for row in rows if row["learning_rate"] == 0.1]
    by_place = {(row["rule"], row["protocol"]): row for row in rows if row["arriving"] == 528}
    for rule, lag in (("sideways", 5), ("backprop", 10)):
        held_out, alone = by_place[rule, "held_out"], by_place[rule, "copying"]
        assert held_out["max_lag"] == alone["max_lag"] == lag
        assert alone["compensated_mse"] < 1e-10 < alone["streaming_mse"]
        in_stream = by_place[rule, "in_stream"]
        assert in_stream["frames"] == 132 * 4  # the last quarter, of four streams
        assert in_stream["still_falling"] < 1.5
        assert in_stream["streaming_mse"] != held_out["streaming_mse"]
    assert file.with_suffix(".png").stat().st_size > 5000
    before = file.stat().st_mtime_ns
    again = _run(file, *more)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("moving_solids") == 6
    errors = [
        next(
            row["streaming_mse"] for row in rows
            if (row["rule"], row["arriving"], row["protocol"]) == (rule, arriving, "held_out")
        )
        for rule in ("backprop", "sideways") for arriving in (1056, 528)
    ]  # fmt: skip
    [line] = [
        line for line in again.stdout.splitlines() if "1056" in line and "held_out" in line
    ]  # fmt: skip
    assert f"{errors[0] / errors[1]:.2f} {errors[2] / errors[3]:.2f}" in line  # of half
    assert file.stat().st_mtime_ns == before


def test_a_source_that_does_not_exist(tmp_path):
    done = _run(tmp_path / "table3.json", "--sources=/nowhere.mp4", "--rates=1e-3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: /nowhere.mp4")
    assert "Traceback" not in done.stderr


def test_milestones_are_whole_eighths(tmp_path):
    done = _run(tmp_path / "table3.json", "--frames=528,1000")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: --frames=528,1000 must be multiples of 528"
    settings = comparison.Settings(
        ("moving_solids",), (1,), seeds=1, milestones=(528, 1056), search_frames=600, rates=(0.1,),
        optimizer="sgd", size=16, streams=4, widths=(4,) * 5, normalise=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^--search_frames=600 must be one of --frames=528,1056$"):
        comparison.check(settings)


def test_a_picture_for_every_source_and_stride():
    rows = [
        {"source": source, "stride": stride, "rule": rule, "protocol": protocol, "seed": seed,
         "arriving": arriving, "streaming_mse": None if seed == 2 else 1 / (arriving + seed)}
        for source in ("moving_solids", "/a/clip.mp4") for stride in (1, 4)
        for rule in ("backprop", "sideways") for protocol in ("in_stream", "held_out", "copying")
        for seed in range(3) for arriving in (528, 1056)
    ]  # fmt: skip
    figure = draw_milestones(rows)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        f"{name}, stride {stride}" for name in ("moving_solids", "clip.mp4") for stride in (1, 4)
    ]
    for axes in figure.axes:
        means = [line for line in axes.lines if line.get_linestyle() != "None"]
        assert len(means) == 6
        for line in means:
            expected = [(1 / n + 1 / (n + 1)) / 2 for n in (528, 1056)]  # without what diverged
            np.testing.assert_allclose(line.get_ydata(), expected)
    figure.canvas.draw()
