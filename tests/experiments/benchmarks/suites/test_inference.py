"""The suite `inference`: what it refuses, its rows from made-up measurements, and a small run."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.rig import camera, watched
from experiments.benchmarks.suites import inference
from experiments.benchmarks.suites.inference import Settings

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modules": (1,)}, "--modules=1: .* from 2 to 18"),
        ({"modules": (2, 19)}, "--modules=19: resnet50 has 18 layers"),
        ({"frames": 8}, "--frames=8: .* at least 9"),
        ({"weights": "no/such.safetensors"}, "--weights=no/such.safetensors: there is no such"),
        ({"model": "resnet51"}, "did you mean 'resnet50'"),
        ({"camera": 0.0}, "--camera=0"),
        ({"devices": (1000,), "forced": False}, "lower --devices"),
    ],
)
def test_refused_before_anything_is_compiled(settings, said):
    with pytest.raises(ValueError, match=said):
        inference.prepare(Settings(**{"forced": True, **settings}))


def made_up(**seconds):
    """Two rounds of 10 frames after the warm-up, and what the programs said."""
    said = {"equal": True, "difference": 0.0, "latency": 0.2, "parts": []}
    return {
        "times": {name: [one, one] for name, one in seconds.items()},
        "said": {name: [said | {"latency": 9.0}, said, said] for name in seconds},
        "cuts": {"4": {"layers": [5, 5, 4, 4], "groups": [2, 2]}},
    }


def test_rows_of_what_was_measured(tmp_path):
    run = made_up(**{
        "each sequential": 2.0, "each in_turn": 1.5, "each one_by_one 4": 2.0,
        "each one_device 4": 2.5, "each depth_sharded 4": 1.0, "threads sequential": 1.6,
        "together program_per_device 4": 0.95,
    })  # fmt: skip
    run["said"]["each one_by_one 4"] = [
        one | {"parts": [0.02, 0.08, 0.06, 0.04]} for one in run["said"]["each one_by_one 4"]
    ]
    run["said"]["each depth_sharded 4"][0] = run["said"]["each sequential"][0] | {
        "equal": False, "difference": 1e-6,
    }  # fmt: skip
    logits = np.arange(20.0)[:, None, None]
    score = partial(camera.score, logits, np.arange(20)[:, None], np.arange(20)[:, None])
    rows = inference.rows_of(run, Settings(modules=(4,), frames=10, rounds=2), 2, score)
    whole, in_turn, one_by_one, one_device, sharded, threads, programs = rows
    assert [row["devices"] for row in rows] == [1, 2, 1, 1, 2, 1, 2]
    assert [row["latency_steps"] for row in rows] == [0, 0, 0, 3, 3, 0, 3]
    assert all(row["latency_ms"] == 200 for row in rows)  # Not that of the warm-up.
    assert sharded["frames_per_second"] == 10 and sharded["speedup"] == 2
    assert threads["program"].startswith("sequential") and threads["over_threads"] == 1
    assert programs["over_threads"] == pytest.approx(1.6 / 0.95)
    assert programs["ideal_speedup"] == pytest.approx(2)  # 0.1 s of each device.
    assert (sharded["equal"], sharded["difference"], programs["equal"]) == (False, 1e-6, True)
    # A camera of 10 frames a second; the pipelines are 3 frames late, two devices in turn 2 or so.
    assert all(row["camera_frames_per_second"] == pytest.approx(10) for row in rows)
    assert (programs["lag"], programs["used"], programs["accuracy"]) == (3, 1, 0)
    assert sharded["lag"] == 3 and in_turn["lag"] > 2 and whole["used"] < 0.6
    assert one_by_one["lag"] == whole["lag"] > 1 > whole["agreement"]
    assert one_device["lag"] is None  # It shows nothing in the first quarter of the stream.
    inference.picture(rows, tmp_path / "inference.png")
    assert (tmp_path / "inference.png").stat().st_size > 5000


def test_digits_are_watched_one_after_the_other():
    seen = watched.digits(20, size=16, batch=2)
    assert seen.frames.shape == (20, 2, 16, 16, 3) and seen.labels.shape == (20, 2)
    assert seen.labels[:, 0].tolist() == [seen.labels[0, 0]] * 16 + [seen.labels[16, 0]] * 4
    assert seen.labels[0, 0] != seen.labels[16, 0]
    assert seen.lesson.shape == (watched.LESSON // 2, 2, 16, 16, 3)
    assert seen.lesson_labels.shape == (watched.LESSON // 2, 2)
    assert set(seen.lesson_labels.ravel()) == set(range(10))


def test_a_readout_learns_what_is_linear():
    draw = np.random.default_rng(0)
    middles = draw.normal(size=(10, 30))
    labels, others = draw.integers(10, size=(60, 2)), draw.integers(10, size=(9, 2))
    logits, asked = (1e-3 * middles[one] + 7 for one in (labels, others))
    np.testing.assert_array_equal(watched.readout(logits, labels, asked), others)


@pytest.mark.full
def test_a_small_run(tmp_path):
    path = tmp_path / "inference.json"
    command = [
        sys.executable, str(ROOT / "experiments/benchmark.py"), "--suite=inference",
        "--model=resnet18", "--modules=2,3", "--frames=8", "--size=32", "--rounds=2",
        f"--json={path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(row["execution"], row["modules"], row["devices"]) for row in rows] == [
        ("sequential", 1, 1), ("in_turn", 1, 2),
        ("one_by_one", 2, 1), ("one_device", 2, 1), ("depth_sharded", 2, 2),
        ("one_by_one", 3, 1), ("one_device", 3, 1), ("depth_sharded", 3, 2),
        ("sequential", 1, 1), ("one_device", 2, 1), ("one_device", 3, 1),
        ("program_per_device", 2, 2), ("program_per_device", 3, 2),
    ]  # fmt: skip
    for row in rows:
        assert row["frames_per_second"] > 0 and row["latency_ms"] > 0
        assert row["difference"] < 1e-5
        late = row["execution"] not in ("sequential", "in_turn", "one_by_one")
        assert row["latency_steps"] == (row["modules"] - 1 if late else 0)
        if late and row["devices"] > 1:
            assert row["equal"], row["program"]
            assert 1 <= row["ideal_speedup"] <= 2 and sum(row["groups"]) == row["modules"]
    assert path.with_suffix(".png").stat().st_size > 5000
