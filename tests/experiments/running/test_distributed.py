"""The main job on several devices and in several processes."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest

from data import load
from experiments.jobs.classification.job import train_and_evaluate
from experiments.processes import distributed
from experiments.processes.children import free_port
from experiments.running import execution
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
CPU = {"JAX_PLATFORMS": "cpu"}
MESH = {"execution": "depth_sharded", "mesh__depth": 2}


def flags(workdir, **fields):
    return [
        "--config=experiments/configs/quickstart.py:smoke",
        f"--workdir={workdir}",
        *tiny.overrides(train__num_steps=6, train__log_every=2, **fields),
    ]


def lines(workdir, split):
    return [
        {name: value for name, value in line.items() if name != "split"}
        for line in tiny.lines(workdir)
        if line["split"] == split
    ]


def assert_close(workdir, other, count=None):
    """The first `count` lines of both logs agree to rounding; default: all."""
    for split in ("train", "test") if count is None else ("train",):
        some, others = lines(workdir, split)[:count], lines(other, split)[:count]
        assert len(some) == len(others) > 0
        for one, another in zip(some, others, strict=True):
            assert one == pytest.approx(another, rel=2e-4, abs=1e-5)


def test_two_processes_train_like_one_device_and_survive_a_kill(tmp_path):
    alone = tmp_path / "alone"
    train_and_evaluate(tiny.config(train__log_every=2, train__checkpoint_every=2), alone)

    # Both on the same checkpoints; the second is killed once there is one.
    together = tmp_path / "together"
    arguments = flags(together, train__checkpoint_every=2, **MESH)
    arguments = [flag.replace("num_steps=6", "num_steps=100000") for flag in arguments]
    port = free_port()
    processes = [
        subprocess.Popen(
            [*tiny.MAIN, *arguments, f"--coordinator_address=127.0.0.1:{port}",
             "--num_processes=2", f"--process_id={n}"],
            cwd=tiny.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | CPU,
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 150
        while not any((together / "checkpoints" / str(n)).exists() for n in (2, 4, 6)):
            assert processes[0].poll() is None, processes[0].stderr.read()
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, errors = processes[0].communicate(timeout=60)
        assert time.monotonic() - killed < 60
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1
    assert "lost the others" in errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert_close(together, alone, count=1)


@pytest.mark.full
def test_two_processes_go_on_from_a_step_that_was_tested(tmp_path):
    """The first process alone has the log that says so."""
    options = {"train__checkpoint_every": 2, "train__eval_every": 2, **MESH}
    for steps in (4, 6):
        arguments = flags(tmp_path / "run", **options)
        arguments = [flag.replace("num_steps=6", f"num_steps={steps}") for flag in arguments]
        launched = [sys.executable, "experiments/launch.py", "--processes=2", "--"]
        result = subprocess.run(
            [*launched, *tiny.MAIN, *arguments],
            cwd=tiny.ROOT, capture_output=True, text=True, timeout=200, check=False,
            env=os.environ | CPU,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    assert [line["step"] for line in lines(tmp_path / "run", "test")] == [2, 4, 6]


def test_goes_on_with_another_execution_and_number_of_devices(tmp_path):
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    options = {"train__log_every": 1, "train__eval_every": 0}
    train_and_evaluate(tiny.config(**options), alone)
    train_and_evaluate(tiny.config(**options, train__num_steps=2, **MESH), moved)
    train_and_evaluate(tiny.config(**options, train__num_steps=3, execution="scan"), moved)
    of_its_own = MESH | {"execution": "program_per_device"}
    train_and_evaluate(tiny.config(**options, train__num_steps=4, **of_its_own), moved)
    train_and_evaluate(
        tiny.config(**options, train__num_steps=5, execution="time_parallel", mesh__data=2), moved
    )
    last = tiny.config(**options, execution="depth_sharded", mesh__depth=1, mesh__data=2)
    train_and_evaluate(last, moved)
    assert [line["step"] for line in lines(moved, "train")] == [1, 2, 3, 4, 5, 6]
    assert_close(moved, alone, count=6)


def test_backprop_by_a_schedule_trains_alike(tmp_path):
    options = {"rule": "backprop", "train__num_steps": 2, "train__log_every": 1}
    train_and_evaluate(tiny.config(**options), tmp_path / "one")
    train_and_evaluate(tiny.config(**options, **MESH, schedule="1f1b"), tmp_path / "1f1b")
    assert_close(tmp_path / "1f1b", tmp_path / "one")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"execution": "depth_sharded", "mesh__depth": 100}, "needs 100 devices, there are 8"),
        ({"mesh__depth": 2}, "set execution='depth_sharded'"),
        ({"execution": "depth_sharded", "mesh__depth": 3}, "a depth axis of 1 to 2"),
        (MESH | {"mesh__data": 3}, "multiple of 3"),
        (MESH | {"mesh__groups": (1, 2)}, "add up to 2"),
        (MESH | {"rule": "backprop"}, "schedule"),
    ],
)
def test_what_the_machine_or_the_network_lacks_is_said(fields, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train_and_evaluate(tiny.config(**fields), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["scan", "time_parallel"])
def test_batches_are_divided_by_name(name):
    """Of clips; a stream on one device leaves the mesh alone."""
    config = tiny.config(execution=name, mesh__data=2)
    assert execution.choose(config, depth=2).mesh.shape == {"data": 2, "depth": 1}
    with pytest.raises(ValueError, match="leave the mesh alone"):
        execution.choose(config, depth=2, streams=True)


def test_the_valid_names_of_executions_are_told():
    with pytest.raises(ValueError, match=r"unknown execution 'aut'; did you mean 'auto'\?"):
        execution.choose(tiny.config(execution="aut"), depth=2)


@pytest.mark.parametrize(
    ("fields", "streams", "name", "shape"),
    [
        ({"data__batch_size": 4}, False, "time_parallel", {"data": 4, "depth": 1}),
        ({"data__batch_size": 4, "mesh__data": 2}, False, "time_parallel", {"data": 2, "depth": 1}),
        ({"data__batch_size": 1}, False, "program_per_device", {"data": 1, "depth": 2}),
        ({"data__batch_size": 4, "mesh__depth": 2}, False, "program_per_device", None),
        ({"data__batch_size": 4}, True, "program_per_device", {"data": 1, "depth": 2}),
    ],
)
def test_auto_takes_what_is_there(fields, streams, name, shape):
    """Of 8 devices: for clips as many as divide the batch; for streams one for every module."""
    chosen = execution.choose(tiny.config(execution="auto", **fields), depth=2, streams=streams)
    assert chosen.name == name
    assert chosen.chosen("auto") == f"auto: {name}"
    assert chosen.chosen(name) == name
    assert chosen.mesh.shape == (shape or {"data": 1, "depth": 2})
    assert jax.device_count() == 8


def test_auto_on_several_processes(monkeypatch):
    """All or none of them divide a batch; and no process dispatches the programs of another."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config = tiny.config(execution="auto", data__batch_size=4)
    assert execution._best(config, streams=False) == ("depth_sharded", 1)
    config.data.batch_size = 8
    assert execution._best(config, streams=False) == ("time_parallel", 8)
    assert execution._best(config, streams=True) == ("depth_sharded", 1)
    with pytest.raises(ValueError, match="execution='depth_sharded'"):
        execution.choose(tiny.config(execution="program_per_device"), depth=2)


FEEDS = """
import sys
sys.path.insert(0, {root!r})
from absl import app
import numpy as np
import psutil
from experiments.processes import distributed
from experiments.running import execution
from tests.experiments import tiny

def main(argv):
    if cluster := distributed.given():
        distributed.initialize(cluster)
    config = tiny.config(execution="depth_sharded", mesh__depth=3, mesh__data=4)
    chosen = execution.choose(config, depth=3)
    labels = np.split(np.arange(8), chosen.num_shares)[chosen.share]
    for shard in chosen.put({{"label": labels}})["label"].addressable_shards:
        (row,), _ = np.nonzero(chosen.mesh.devices == shard.device)
        print("row", row, "is fed", *np.asarray(shard.data), flush=True)

app.run(main)
"""


def test_devices_of_a_row_that_straddles_processes_are_fed_the_same(tmp_path):
    """3 processes of 4 devices as 4 rows of 3: the two in the middle belong to two processes."""
    (tmp_path / "feeds.py").write_text(FEEDS.format(root=str(tiny.ROOT)))
    done = subprocess.run(
        [sys.executable, "experiments/launch.py", "--processes=3", f"--logs={tmp_path}", "--",
         "python", str(tmp_path / "feeds.py")],
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | CPU | {"JAX_NUM_CPU_DEVICES": "4"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / f"process-{n}.log").read_text() for n in (1, 2)]
    fed = [re.findall(r"row (\d) is fed (\d) (\d)\n", text) for text in (done.stdout, *logs)]
    assert [[int(row) for row, *_ in one] for one in fed] == [
        [0, 0, 0, 1], [1, 1, 2, 2], [2, 3, 3, 3]
    ]  # fmt: skip
    for row, *labels in itertools.chain(*fed):
        assert [int(label) for label in labels] == [2 * int(row), 2 * int(row) + 1]


@pytest.mark.parametrize(
    ("num_devices", "data", "depth", "shares"),  # of each process; (0, 2): the first half
    [
        (4, 4, 3, [(0, 2), (0, 1), (1, 2)]),
        (8, 4, 6, [(0, 2), (0, 1), (1, 2)]),
        (4, 4, 2, [(0, 2), (1, 2)]),
        (2, 2, 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        (2, 1, 4, [(0, 1), (0, 1)]),
        (6, 4, 3, [(0, 2), (1, 2)]),
        (1, 4, 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (4, 6, 2, [(0, 3), (1, 3), (2, 3)]),
    ],
)
def test_a_share_has_every_row_that_the_process_holds(
    num_devices, data, depth, shares, monkeypatch
):
    num_processes = len(shares)
    processes = np.repeat(np.arange(num_processes), num_devices).reshape(data, depth)
    grid = np.vectorize(lambda n: SimpleNamespace(process_index=int(n)))(processes)
    mesh = SimpleNamespace(devices=grid, shape={"data": data, "depth": depth})
    monkeypatch.setattr(execution, "make_mesh", lambda *_: mesh)
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    config = tiny.config(execution="depth_sharded", mesh__depth=depth, mesh__data=data)
    for process in range(num_processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        chosen = execution.choose(config, depth)
        assert (chosen.share, chosen.num_shares) == shares[process]
        share = np.split(np.arange(data), chosen.num_shares)[chosen.share]
        assert set(np.flatnonzero((processes == process).any(axis=1))) <= set(share)


@pytest.mark.full
def test_three_processes_of_four_devices_train_like_one(tmp_path):
    options = {"model__cut": (2, 2, 2), "data__batch_size": 4}
    train_and_evaluate(tiny.config(train__log_every=2, **options), tmp_path / "alone")
    mesh = {"execution": "depth_sharded", "mesh__depth": 3, "mesh__data": 4}
    command = _launch(tmp_path / "together", *flags(tmp_path / "together", **options, **mesh))
    command[command.index("--processes=2")] = "--processes=3"
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=500, check=False,
        env=os.environ | CPU | {"JAX_NUM_CPU_DEVICES": "4"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for split in ("train", "test"):
        last = [lines(tmp_path / name, split)[-1] for name in ("together", "alone")]
        assert last[0] == pytest.approx(last[1], rel=2e-4, abs=1e-5)
    assert_close(tmp_path / "together", tmp_path / "alone", count=3)


def test_each_process_feeds_its_share():
    # Two rows of a mesh in two processes: batches of 2 become 1 and 1.
    config = tiny.config()
    whole = next(iter(load(config.data, seed=0).train))
    halves = [
        next(iter(load(config.data, seed=0, process_index=n, process_count=2).train))
        for n in range(2)
    ]
    assert [list(half["label"]) for half in halves] == [[label] for label in whole["label"]]


def test_half_of_the_flags_is_an_error(tmp_path):
    done = tiny.run_main(*flags(tmp_path / "new"), "--num_processes=2")
    assert done.returncode == 1
    assert "belong together" in done.stderr


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = tiny.run_main(*flags(tmp_path / "new"), f"--coordinator_address=127.0.0.1:{port}",
                             "--num_processes=2", "--process_id=0")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: port {port} of --coordinator_address=127.0.0.1:{port} ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("address", ["node0", "node0:", "node0:x", ":99", "node0:99999"])
def test_an_address_without_a_port(address):
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        distributed.initialize(distributed.Cluster(address, 2, 0))


def _launch(workdir, *flags):
    return [sys.executable, "experiments/launch.py", "--processes=2", f"--logs={workdir.parent}",
            "--", "python", "experiments/main.py", *flags]  # fmt: skip


def test_interrupted_all_stop_at_the_same_step_and_save(tmp_path):
    workdir = tmp_path / "run"
    arguments = flags(workdir, train__checkpoint_every=3, train__eval_every=0, **MESH)
    arguments = [flag.replace("num_steps=6", "num_steps=100000") for flag in arguments]
    launcher = subprocess.Popen(
        _launch(workdir, *arguments), cwd=tiny.ROOT, text=True, env=os.environ | CPU,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 150
    while not (workdir / "checkpoints" / "3").exists():
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    try:
        launcher.send_signal(signal.SIGTERM)
        _, errors = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
        launcher.communicate()
    assert launcher.returncode == 143
    (stopped,) = re.findall(r"Stopped at step (\d+) of 100000, and saved", errors)
    assert (workdir / "checkpoints" / stopped).exists()
    assert f"Stopped at step {stopped} of" in (tmp_path / "process-1.log").read_text()


def test_launched_by_the_launcher(tmp_path):
    workdir = tmp_path / "run"
    every = {"train__checkpoint_every": 3, "train__eval_every": 3}
    command = _launch(workdir, *flags(workdir, **every, **MESH))
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | CPU,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "depth_sharded" in done.stdout
    assert {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "test_clips.png",
            "training_curves.png"} <= {path.name for path in workdir.iterdir()}  # fmt: skip
    alone = tmp_path / "alone"
    train_and_evaluate(tiny.config(train__log_every=2, **every), alone)
    assert_close(workdir, alone)


@pytest.mark.full
def test_one_asked_by_sigterm_all_save_within_seconds(tmp_path):
    """Long before the next line of the log: they ask one another every few seconds."""
    workdir = tmp_path / "run"
    arguments = flags(workdir, train__checkpoint_every=3, train__eval_every=0, **MESH)
    arguments = [flag.replace("num_steps=6", "num_steps=100000") for flag in arguments]
    arguments = [flag.replace("log_every=2", "log_every=100000") for flag in arguments]
    launcher = subprocess.Popen(
        _launch(workdir, *arguments), cwd=tiny.ROOT, text=True, env=os.environ | CPU,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 150
    while not (workdir / "checkpoints" / "3").exists():
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    try:
        [second] = [
            child for child in psutil.Process(launcher.pid).children()
            if "--process_id=1" in child.cmdline()
        ]  # fmt: skip
        second.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        _, errors = launcher.communicate(timeout=60)
        assert time.monotonic() - asked < 15
    finally:
        launcher.kill()
        launcher.communicate()
    assert launcher.returncode == 143
    (stopped,) = set(re.findall(r"Stopped at step (\d+) of 100000, and saved", errors))
    assert (workdir / "checkpoints" / stopped).exists()
