"""The benchmark and the picture of the schedules, run as users run them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.benchmarks.rig import suite
from experiments.benchmarks.suites import speedup

ROOT = Path(__file__).resolve().parents[2]


def run(script, *arguments, timeout=240):
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_suite_rules(tmp_path):
    path = tmp_path / "rules.json"
    done = run(
        "benchmark.py", "--suite=rules", f"--json={path}", "--frames=11", "--memory_frames=12",
        "--batch=1", "--size=8", "--rounds=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    result = json.loads(path.read_text())
    assert {"processor", "cores", "jax", "date"} <= set(result["machine"])
    timed = [row for row in result["rows"] if row["seconds_per_step"] is not None]
    assert {(row["rule"], row["execution"]) for row in timed} == {
        ("backprop", "batched"),
        ("backprop", "time_parallel"),
        ("sideways", "time_parallel"),
        ("backprop", "scan"),
        ("sideways", "scan"),
        ("pipelined_backprop", "time_parallel"),
        ("pipelined_backprop", "scan"),
        ("pipelined_backprop", "scan, residuals"),
    }
    assert all(row["temporary_bytes"] > 0 and row["suite"] == "rules" for row in result["rows"])
    assert path.with_suffix(".png").stat().st_size > 5000


def test_suite_chip(tmp_path):
    path = tmp_path / "chip.json"
    done = run(
        "benchmark.py", "--suite=chip", f"--json={path}", "--model=simple_cnn", "--frames=11",
        "--batch=1", "--size=8", "--rounds=1", "--matrix=64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(row["dtype"], row["rule"]) for row in rows] == [
        (dtype, rule) for dtype in ("float32", "bfloat16") for rule in ("sideways", "backprop")
    ]
    flops = [row["flops_per_step"] for row in rows]
    # K = 11: the way up is the same, and down go gamma = 1, 3, ... 11 of the frames.
    assert 0.4 < flops[0] / flops[1] < 0.7
    for row in rows:
        rate = row["flops_per_step"] * row["steps_per_second"] / 1e12
        assert row["fraction"] == pytest.approx(rate / row["matrix_teraflops_per_second"])
        assert row["paper_steps_per_second"] is None  # Not the paper's setting.
    assert path.with_suffix(".png").stat().st_size > 5000


@pytest.mark.full
def test_suite_memory(tmp_path):
    """What pipelined backprop needs beyond Sideways is what it keeps, and a row that is written."""
    path = tmp_path / "memory.json"
    done = run(
        "benchmark.py", "--suite=memory", f"--json={path}", "--memory_frames=11,22", "--depths=2",
        "--batch=2", "--size=16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    for recompute in (True, False):
        short, long = (
            row for row in rows
            if (row["schedule"], row["recompute"]) == ("pipelined_backprop", recompute)
        )  # fmt: skip
        assert short["bytes_kept"] == long["bytes_kept"]
        assert short["bytes_beyond_sideways"] == long["bytes_beyond_sideways"]  # Flat in K.
        # D = 6: ten rows.
        assert 1 <= short["bytes_beyond_sideways"] / short["bytes_kept"] < 1.25
    short, long = (row for row in rows if row["execution"] == "program_per_device")
    assert short["temporary_bytes"] <= long["temporary_bytes"] < 1.01 * short["temporary_bytes"]
    assert 1 <= long["held_over_needed"] < 1.05


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "depth", "flags"),
    [("simple_cnn", 6, ["--frames=11", "--size=8"]), ("vgg8", 8, ["--frames=15", "--size=27"])],
)
def test_suite_table2(tmp_path, model, depth, flags):
    path = tmp_path / "table2.json"
    done = run(
        "benchmark.py", "--suite=table2", f"--model={model}", f"--json={path}", "--batch=1",
        "--rounds=1", *flags, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    for execution in ("depth_sharded", "program_per_device"):
        sharded = [row for row in rows if row["execution"] == execution]
        assert [row["schedule"] for row in sharded] == [
            None, "blocking", "gpipe", "1f1b", "inputs", "residuals",
        ]  # fmt: skip
        assert all(row["devices"] == 2 and sum(row["groups"]) == depth for row in sharded)
    assert path.with_suffix(".png").stat().st_size > 5000


@pytest.mark.full
def test_suite_online(tmp_path):
    path = tmp_path / "online.json"
    done = run(
        "benchmark.py", "--suite=online", f"--json={path}", "--frames=11", "--batch=1", "--size=8",
        "--rounds=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(row["rule"], row["devices"], row["output_lag"]) for row in rows] == [
        ("sideways", 2, "5"), ("pipelined_backprop", 2, "5"), ("backprop", 2, "5-15"),
        ("inference", 2, "5"),
        ("sideways", 1, "5"), ("pipelined_backprop", 1, "5"), ("inference", 1, "5"),
        ("sideways", 2, "5"), ("pipelined_backprop", 2, "5"), ("backprop", 2, "5-15"),
        ("inference", 2, "5"),
    ]  # fmt: skip
    assert all(row["frames_per_second"] > 0 for row in rows)
    ideal = [row["ideal_speedup"] is not None for row in rows]
    pipeline = [True, True, False, False]
    assert ideal == [*pipeline, False, False, False, *pipeline]


def test_speedups_are_those_of_the_paper():
    """Two groups of costs 3 and 1: blocking takes 4 at each frame, an ideal pipeline 3."""
    times = {
        "sideways depth_sharded": [3.2, 3.2], "backprop blocking depth_sharded": [4.0, 4.0],
        "sideways scan": [4.0, 4.0], "group 0": [3.0, 3.0], "group 1": [1.0, 1.0],
    }  # fmt: skip
    measured = {"devices": 2, "groups": [4, 2], "times": times, "temporary_bytes": {}}
    sideways, blocking, scan = speedup.rows_of(measured, {"model": "simple_cnn"})
    assert sideways["speedup_over_blocking"] == pytest.approx(1.25)
    assert sideways["ideal_speedup"] == pytest.approx(4 / 3)
    assert sideways["efficiency"] == pytest.approx(1.25 * 3 / 4)
    assert blocking["speedup_over_blocking"] == 1
    assert (blocking["efficiency"], scan["efficiency"], scan["devices"]) == (None, None, 1)


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("benchmark.py", ["--suite=table2", "--devices=1000"], "lower --devices"),
        ("benchmark.py", ["--suite=table2", "--devices=7", "--forced"], "has 6 modules"),
        ("benchmark.py", ["--suite=rulez"], "rules"),
        ("benchmark.py", ["--suite=rules", "--batch=0"], "batch"),
        ("benchmark.py", ["--suite=rules", "--depths=3"], "--suite=rules takes no --depths"),
        ("benchmark.py", ["--suite=memory", "--depths=2,x"], "--depths=2,x must be numbers"),
        ("draw_schedule.py", ["--schedules=sidewise"], "'sideways'"),
        (
            "draw_shortcuts.py",
            ["--receivers=5", "--out=a.png"],
            "--receivers=5 must be from 1 to 4",
        ),
    ],
)
def test_wrong_arguments_are_named(script, arguments, said):
    done = run(script, *arguments)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    ("topology", "package", "extra"),
    [("v5e:2x4", "libtpu", "tpu-compile"), ("h100:8", "jax_cuda12_plugin", "cuda-compile")],
)
def test_chips_names_the_compiler_that_is_missing(topology, package, extra):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is here")
    done = run("benchmark.py", "--suite=chips", f"--topology={topology}")
    assert done.returncode != 0
    *_, last = done.stderr.splitlines()  # After the flags.
    assert last.startswith(f"--topology={topology} needs the compiler of {package}")
    assert f"pip install -e '.[experiments,{extra}]'" in last
    assert "Traceback" not in done.stderr


def test_a_suite_says_which_settings_it_takes():
    class Settings(NamedTuple):
        model: str = "simple_cnn"
        depths: tuple[int, ...] = (2, 3)
        dtype: suite.Dtype = "float32"

    made_up = suite.Suite(Settings, *[lambda *_: None] * 3, columns={})
    assert suite.settings_of("made_up", made_up, {}) == Settings()
    given = {"model": "vgg8", "depths": ["1", "6"]}
    assert suite.settings_of("made_up", made_up, given) == Settings("vgg8", (1, 6))
    with pytest.raises(ValueError, match="it takes --depths, --dtype, --model"):
        suite.settings_of("made_up", made_up, {"frames": 64})


@pytest.mark.full
def test_draw_shortcuts(tmp_path):
    path = tmp_path / "shortcuts.png"
    done = run("draw_shortcuts.py", "--modules=4", "--receivers=2,3", f"--out={path}")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


def test_draw_schedule(tmp_path):
    path = tmp_path / "schedules.png"
    done = run(
        "draw_schedule.py", "--schedules=sideways,pipelined_backprop,blocking,gpipe,1f1b",
        "--stages=3", "--steps=8", "--frames=4", f"--out={path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
