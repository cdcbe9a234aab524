"""Several processes on one machine, started and watched by experiments/launch.py."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.processes.children import start

ROOT = Path(__file__).resolve().parents[2]

WHO = "import sys; print('I am', sys.argv[-1].split('=')[1], len(sys.argv), flush=True)"
SECOND_FAILS = """
import sys, time
if sys.argv[-1] == "--process_id=1":
    print("something broke"); sys.exit(3)
time.sleep(100)
"""
SECOND_IS_KILLED = """
import os, signal, sys, time
if sys.argv[-1] == "--process_id=1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)
"""
TRAINS = """
import sys
sys.path.insert(0, {root!r})
from absl import app
import jax, jax.numpy as jnp, numpy as np, optax
from experiments.processes import distributed

def main(argv):
    if cluster := distributed.given():
        distributed.initialize(cluster)
    from jax.sharding import NamedSharding, PartitionSpec
    from flax import linen
    from sideways_jax import Network, from_linen, make_mesh, step

    network = Network([from_linen(linen.Dense(n)) for n in (5, 4, 3)])
    mesh = make_mesh(depth=2)
    init, train_step = step.make_train_step(
        network, lambda y, t: jnp.mean((y - t) ** 2), optax.adam(1e-2),
        execution="depth_sharded", mesh=mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(0)
    clip = [jax.make_array_from_process_local_data(everywhere, a, a.shape)
            for a in (rng.random((7, 2, 4), np.float32), rng.random((7, 2, 3), np.float32))]
    train_state = init(jax.random.key(0), jax.ShapeDtypeStruct((2, 4), jnp.float32))
    train_step = jax.jit(train_step)
    for _ in range(3):
        train_state, metrics = train_step(train_state, *clip)
        print("step", float(metrics["loss"]).hex(), float(metrics["grad_norm"]).hex(), flush=True)

app.run(main)
"""


def launch(program, tmp_path, *options):
    (tmp_path / "program.py").write_text(program)
    command = [
        sys.executable,
        str(ROOT / "experiments" / "launch.py"),
        "--processes=2",
        f"--logs={tmp_path}",
        *options,
        "--",
        "python",
        str(tmp_path / "program.py"),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_every_process_is_told_who_it_is(tmp_path):
    done = launch(WHO, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "I am 0 4\n"
    assert (tmp_path / "process-1.log").read_text() == "I am 1 4\n"


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [(SECOND_FAILS, 3, "something broke"), (SECOND_IS_KILLED, 137, "killed by signal 9")],
)
def test_when_one_dies_the_others_are_stopped(program, code, said, tmp_path):
    start = time.monotonic()
    done = launch(program, tmp_path)
    assert time.monotonic() - start < 30
    assert done.returncode == code
    assert "Process 1 of 2" in done.stderr
    assert said in done.stderr


def test_when_the_launcher_is_killed_none_stays(tmp_path):
    (tmp_path / "program.py").write_text(
        f"import sys, time, os; sys.path.insert(0, {str(ROOT)!r})\n"
        "from experiments.processes import interrupts; interrupts.end_with_launcher()\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, str(ROOT / "experiments" / "launch.py"), f"--logs={tmp_path}", "--",
               "python", str(tmp_path / "program.py")]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        pids = [int(launcher.stdout.readline())]
        deadline = time.monotonic() + 20
        while not (said := (tmp_path / "process-1.log").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        launcher.kill()
    pids.append(int(said))
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline, "a process is still there"
        time.sleep(0.1)


def test_a_child_that_cannot_be_started_takes_the_others_along(tmp_path):
    (tmp_path / "process-2.log").mkdir()  # Where its output should go.
    children = []
    with pytest.raises(IsADirectoryError):
        start([sys.executable, "-c", "import time; time.sleep(100)"], 3, tmp_path, children,
              pin=False)  # fmt: skip
    assert len(children) == 2
    assert [child.poll() for child in children] == [-signal.SIGTERM] * 2


def test_a_program_that_cannot_be_started_is_one_line(tmp_path):
    script = tmp_path / "program.sh"
    script.write_text("echo")  # Not executable.
    command = [sys.executable, str(ROOT / "experiments" / "launch.py"), "--", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 127
    assert "Traceback" not in done.stderr
    assert "program.sh cannot be started: Permission denied" in done.stderr


def test_two_processes_compute_what_two_devices_do(tmp_path):
    program = TRAINS.format(root=str(ROOT))
    done = launch(program, tmp_path)
    assert done.returncode == 0, done.stderr

    def losses(text):
        return [line for line in text.splitlines() if line.startswith("step")]

    over_gloo = losses(done.stdout)
    assert over_gloo == losses((tmp_path / "process-1.log").read_text())
    program = program.replace("def main(argv):", "jax.config.update('jax_num_cpu_devices', 2)\n\n"
                              "def main(argv):")  # fmt: skip
    (tmp_path / "alone.py").write_text(program)
    alone = subprocess.run(
        [sys.executable, str(tmp_path / "alone.py")],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert len(over_gloo) == 3
    assert over_gloo == losses(alone.stdout)
