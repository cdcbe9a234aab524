"""The launch files of experiments/hosts, as far as they can be run without a cluster.

Stand-ins take the place of `srun`, `gcloud` and the kubelet: they start two processes on this
machine with the variables that these would set. The processes find each other and train together.
"""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiments.examples import videos
from experiments.jobs.classification.job import train_and_evaluate
from experiments.processes.children import free_port
from tests.experiments import tiny

HOSTS = tiny.ROOT / "experiments" / "hosts"
# Starts "$@" as two tasks of a Slurm job.
TWO_TASKS = """
for n in 0 1; do
  SLURM_PROCID=$n SLURM_LOCALID=$n "$@" >"$LOGS/process-$n.log" 2>&1 &
  pids[n]=$!
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SRUN = "#!/usr/bin/env bash\nshift" + TWO_TASKS  # Without --kill-on-bad-exit.
GCLOUD = (
    """#!/usr/bin/env bash
for argument; do
  case $argument in --command=*) command=${argument#--command=} ;; esac
done
cd "$HOSTS_HOME"
set -- bash -c "$command"
"""
    + TWO_TASKS
)


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def slurm_variables():
    """Those of a job of two tasks on this host, by which JAX chooses a port that is free."""
    for job in range(os.getpid(), os.getpid() + 4096):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", job % 4096 + 65535 - 4095))
            except OSError:
                continue
            break
    return {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}


def run(command, tmp_path, cwd=tiny.ROOT, **variables):
    """Runs a launch file beside stand-ins for the programs of clusters."""
    executable(tmp_path / "bin" / "srun", SRUN)
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    environment = os.environ | slurm_variables() | variables
    environment |= {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOGS": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment,
        capture_output=True, text=True, timeout=540, check=False,
    )  # fmt: skip


def activation(path):
    """A virtual environment whose Python is this one."""
    path.parent.mkdir(parents=True)
    path.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")


def arguments(workdir):
    flags = tiny.overrides(train__num_steps=4, train__log_every=4, train__eval_every=0)
    return ["--config=experiments/configs/quickstart.py:smoke", f"--workdir={workdir}",
            "--config.execution=auto", *flags]  # fmt: skip


def assert_together(done, tmp_path, workdir):
    """Both processes took part, and computed what one does."""
    logs = [(tmp_path / f"process-{n}.log").read_text() for n in range(2)]
    assert done.returncode == 0, (done.stderr, logs)
    assert "(auto: time_parallel)" in logs[0]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["execution"] == "time_parallel (data 2 x depth 1)"
    alone = tmp_path / "alone"
    train_and_evaluate(
        tiny.config(train__num_steps=4, train__log_every=4, train__eval_every=0), alone
    )
    found, expected = (
        [line["loss"] for line in tiny.lines(folder) if line["split"] == "train"]
        for folder in (workdir, alone)
    )
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.full
def test_slurm(tmp_path):
    activation(tmp_path / "venv" / "bin" / "activate")
    workdir = tmp_path / "run"
    command = ["bash", HOSTS / "slurm.sh", *arguments(workdir)]
    done = run(command, tmp_path, SLURM_SUBMIT_DIR=str(tiny.ROOT), VENV=str(tmp_path / "venv"))
    assert_together(done, tmp_path, workdir)


@pytest.mark.full
def test_tpu_pod(tmp_path):
    repository = tmp_path / "home" / "sideways_jax"
    repository.mkdir(parents=True)
    for path in tiny.ROOT.iterdir():
        if path.name != ".venv":
            (repository / path.name).symlink_to(path)
    activation(repository / ".venv" / "bin" / "activate")
    workdir = tmp_path / "run"
    command = [HOSTS / "tpu_pod.sh", "pod", "zone", *arguments(workdir)]
    done = run(command, tmp_path, HOSTS_HOME=str(repository.parent))
    assert_together(done, tmp_path, workdir)


def test_tpu_pod_says_what_it_needs(tmp_path):
    done = run([HOSTS / "tpu_pod.sh", "pod"], tmp_path)
    assert done.returncode == 2
    assert "NAME ZONE --config=FILE" in done.stderr


def job_and_service():
    service, job = yaml.safe_load_all((HOSTS / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return job, service


def test_pods_find_the_first_one():
    job, service = job_and_service()
    name, spec = job["metadata"]["name"], job["spec"]
    [container] = spec["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert env["COORDINATOR"].split(":")[0] == f"{name}-0.{service['metadata']['name']}"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(env["NUM_PROCESSES"])
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def command_of(container, index, mounts, coordinator):
    """What the kubelet starts in pod `index`: variables filled in, volumes at `mounts`."""
    given = {"COORDINATOR": coordinator}
    for entry in container["env"]:
        if "valueFrom" in entry:
            field = entry["valueFrom"]["fieldRef"]["fieldPath"]
            assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            given[entry["name"]] = str(index)
        else:
            given.setdefault(entry["name"], entry["value"])
    parts = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], part)
             for part in (*container["command"], *container["args"])]  # fmt: skip
    for path, folder in mounts.items():
        parts = [part.replace(f"={path}", f"={folder}") for part in parts]
    return parts


@pytest.mark.full
def test_kubernetes(tmp_path):
    job, _ = job_and_service()
    [container] = job["spec"]["template"]["spec"]["containers"]
    clips = tmp_path / "videos"
    videos.write(clips)
    small = ["--config.model.widths=(4,4,4,4,4)", "--config.data.num_frames=12",
             "--config.data.size=16", "--config.data.resize=16", "--config.data.batch_size=2",
             "--config.train.num_steps=2"]  # fmt: skip
    coordinator = f"127.0.0.1:{free_port()}"
    pods = []
    for index in range(job["spec"]["completions"]):
        command = command_of(
            container, index, {"/videos": clips, "/runs": tmp_path / "runs"}, coordinator
        )
        assert command[:2] == ["python", "experiments/main.py"]
        pods.append(
            subprocess.Popen(
                [sys.executable, *command[1:], *small],
                cwd=tiny.ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
            )
        )
    deadline = time.monotonic() + 540
    said = [pod.communicate(timeout=deadline - time.monotonic())[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert "(auto: time_parallel)" in said[0]
    assert "Kubernetes environment" not in said[0]  # JAX would look for a cluster, and warn.
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert summary["execution"] == "time_parallel (data 2 x depth 1)"
