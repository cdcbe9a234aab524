"""The suite `peers`, as far as it runs without PyTorch, and asking processes in turn."""

import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from experiments.benchmarks.rig import turns
from experiments.benchmarks.rig.processes import Settings
from experiments.benchmarks.rig.programs import loss_fn
from experiments.benchmarks.suites import peers
from experiments.benchmarks.workers import reference
from experiments.processes.children import usable_cores
from sideways_jax import Network, from_linen, make_mesh, step
from tests.sideways_jax.sharding import assert_close

ROOT = Path(__file__).resolve().parents[4]
SETTINGS = {"model": "simple_cnn", "frames": 64, "batch": 8, "size": 32, "dtype": "float32"}
PREPARE = {"model": "simple_cnn", "devices": (2,), "forced": False, "dtype": "float32"}
WORKER = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from experiments.benchmarks.rig import turns
number = sys.argv[-1].removeprefix("--process_id=")
print("gloo says something", flush=True)
def work():
    return {{"process": number, "cores": len(os.sched_getaffinity(0))}}
def fail():
    if number == "1":
        raise ValueError("too many bananas")
    time.sleep(600)  # As one that waits for a message of the other.
turns.serve({{"work": work, "fail": fail}}, groups=[3, 3])
"""


def small_network():
    return Network([from_linen(nn.Dense(5)), from_linen(nn.Dense(3))])


def small_clip():
    frames = np.random.default_rng(0).random((2, 4, 6), np.float32)
    return frames, np.tile(np.arange(4, dtype=np.int32) % 3, (2, 1))


@pytest.mark.parametrize("execution", ["scan", "time_parallel"])
def test_data_parallel_updates_as_one_device_does(execution, quick_compile):
    network, (frames, labels), tx = small_network(), small_clip(), optax.sgd(0.5)
    options = {"execution": execution}
    results = [
        jax.jit(train_step)(init(jax.random.key(0), frames[0]), frames, labels)
        for init, train_step in (
            step.make_train_step(network, loss_fn, tx, rule="backprop", **options | where)
            for where in ({"mesh": make_mesh(1, data=2)}, {})
        )
    ]
    (actual, metrics), (expected, expected_metrics) = results
    assert_close(actual.params, expected.params, 1e-5)
    assert_close(metrics, expected_metrics, 1e-5)


def test_reference_is_what_training_starts_with(tmp_path, quick_compile):
    network, (frames, labels) = small_network(), small_clip()
    path, key = tmp_path / "reference.npz", jax.random.key(3)
    reference.save(path, network, key, frames, labels)
    with np.load(path) as saved:
        arrays = dict(saved)
    init, _ = step.make_train_step(network, loss_fn, optax.sgd(0.1))
    params = jax.jit(lambda key: init(key, frames[0]))(key).params
    np.testing.assert_array_equal(arrays["1/bias"], params[1]["bias"])
    np.testing.assert_allclose(arrays["0/kernel"], params[0]["kernel"], rtol=1e-6)
    assert sum(name[0].isdigit() for name in arrays) == len(jax.tree.leaves(params)) == 4
    assert arrays["logits"].shape == (4, 3) and np.ptp(arrays["logits"]) > 0.01
    np.testing.assert_array_equal(arrays["frames"], frames)


def test_processes_answer_in_turn_and_say_why_they_ended(tmp_path):
    command = [sys.executable, "-c", WORKER]
    with turns.team(command, 2, tmp_path / "good") as team:
        assert team.about == {"programs": ["work", "fail"], "groups": [3, 3]}
        assert [turns.ask(team, "work")["process"] for _ in range(2)] == ["0", "0"]
        cores = usable_cores()
        assert turns.ask(team, "work")["cores"] == max(cores // 2, 1)
    assert [child.returncode for child in team.children] == [0, 0]
    with (
        pytest.raises(RuntimeError, match=r"(?s)process 1 of 2 .*too many bananas"),
        turns.team(command, 2, tmp_path / "bad") as team,
    ):
        turns.ask(team, "fail")
    assert all(child.poll() is not None for child in team.children)


def measured():
    """Two rounds in which Sideways takes 2 s, data-parallel backprop 1 s, PyTorch 4 s."""
    times = {
        peers.SIDEWAYS: [2.0, 2.0], peers.processes.BLOCKING + "depth_sharded": [6.0, 6.0],
        "backprop data_parallel scan": [1.0, 1.0], "group 0": [1.0, 1.0], "group 1": [1.5, 1.5],
        "backprop 1f1b pipelining": [4.0, 4.0],
    }  # fmt: skip
    return {
        "devices": 2, "groups": [3, 3], "module_costs": [], "temporary_bytes": {}, "times": times,
        "torch": ["backprop 1f1b pipelining"],
    }  # fmt: skip


def test_rows_and_picture(tmp_path, monkeypatch):
    versions = {"jax": "0.10.2", "torch": "2.13.0"}
    monkeypatch.setattr(peers.importlib.metadata, "version", versions.__getitem__)
    rows = peers.rows_of(measured(), SETTINGS)
    sideways, blocking, parallel, torch = rows
    assert [row["ratio_to_sideways"] for row in rows] == pytest.approx([1, 1 / 3, 2, 0.5])
    assert [row["steps_per_second"] for row in rows] == pytest.approx([1 / 2, 1 / 6, 1, 1 / 4])
    assert [row["framework"] for row in rows] == ["jax", "jax", "jax", "torch"]
    assert torch["framework_version"] == "2.13.0" and torch["schedule"] == "1f1b"
    assert sideways["ideal_speedup"] is None
    assert (parallel["devices"], parallel["groups"], torch["groups"]) == (2, None, [3, 3])
    assert blocking["speedup_over_blocking"] == 1
    peers.picture(rows, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 5000


@pytest.mark.parametrize(("key", "factor"), [("loss", 1.01), ("grad_norm", 0.98)])
def test_another_computation_is_not_compared(key, factor):
    same = {"loss": 2.0, "grad_norm": 3.0}
    answers = {
        peers.SIDEWAYS: {"loss": 9.0, "grad_norm": 9.0},
        peers.processes.BLOCKING + "depth_sharded": same,
        "group 0": None,
        "backprop gpipe pipelining": {name: value * 1.0001 for name, value in same.items()},
    }  # fmt: skip
    peers.check_agreement(answers)
    answers["backprop gpipe pipelining"] = same | {key: same[key] * factor}
    with pytest.raises(ValueError, match=key):
        peers.check_agreement(answers)


def test_without_torch_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # As if it were not installed.
    with pytest.raises(ValueError, match=r"\[peers\].*https://download.pytorch.org/whl/cpu"):
        peers.prepare(Settings(**PREPARE))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "vgg8"}, "--model=simple_cnn"),
        ({"dtype": "bfloat16"}, "--dtype=float32"),
        ({"forced": True}, "--forced=False"),
        ({"devices": (1,)}, "at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, said, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=said):
        peers.prepare(Settings(**PREPARE | change))


def test_nothing_else_imports_torch():
    folders = (ROOT / name for name in ("sideways_jax", "experiments", "data"))
    files = [file for folder in folders for file in folder.rglob("*.py")]
    importing = [
        f.name for f in files if re.search(r"^\s*(import|from) torch\b", f.read_text(), re.M)
    ]
    assert len(files) > 60 and importing == ["torch_worker.py"]
