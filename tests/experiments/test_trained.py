"""Networks out of workdirs: what they give is what the run had measured."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from data import load
from experiments import trained
from experiments.configs import autoencoder
from experiments.jobs.autoencoding import job as autoencoding
from experiments.jobs.classification.accuracy import make_evaluate
from experiments.jobs.classification.job import train_and_evaluate
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
EXECUTIONS = {
    "time_parallel": {},
    "scan": {"execution": "scan"},
    "depth_sharded": {"execution": "depth_sharded", "mesh__depth": 2, "optimizer__ema": 0.8},
    "program_per_device": {"execution": "program_per_device", "mesh__depth": 2},
}
QUIET = Console(quiet=True)


def loss_of(run):
    """The test loss of a loaded network."""
    source = load(run.config.data, seed=run.config.seed)
    evaluate = make_evaluate(run.network, run.config.eval.average)
    return evaluate(
        run.params, run.state, source.test(), source.num_test, len(source.classes)
    ).loss  # fmt: skip


@pytest.mark.parametrize(
    "execution",
    [
        "time_parallel",
        "depth_sharded",
        pytest.param("scan", marks=pytest.mark.full),
        pytest.param("program_per_device", marks=pytest.mark.full),
    ],
)
def test_of_every_execution(execution, tmp_path):
    train_and_evaluate(tiny.config(**EXECUTIONS[execution]), tmp_path, QUIET)
    run = trained.load(tmp_path)
    assert run.classes == tuple("0123456789")
    assert (run.step, run.network.depth) == (6, 2)
    logged = {line["step"]: line for line in tiny.lines(tmp_path) if line["split"] == "test"}
    assert loss_of(run) == pytest.approx(logged[6]["loss"], rel=1e-5)
    assert loss_of(trained.load(tmp_path, 3)) == pytest.approx(logged[3]["loss"], rel=1e-5)
    best = trained.load(tmp_path, "best")
    assert logged[best.step]["accuracy"] == max(line["accuracy"] for line in logged.values())
    if execution == "depth_sharded":  # This process has 8 devices; another may have one.
        assert_loads_on_one_device(tmp_path, run)


def assert_loads_on_one_device(workdir, run):
    code = (
        "import jax, numpy as np; from experiments import trained; assert jax.device_count() == 1;"
        f"run = trained.load({str(workdir)!r}); size = run.config.data.size;"
        "frames = np.arange(2 * size * size * 3, dtype='u1').reshape(2, size, size, 3);"
        "print(np.asarray(run.network.apply(run.params, run.state, frames)[0]).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    size = run.config.data.size
    frames = np.arange(2 * size * size * 3, dtype="u1").reshape(2, size, size, 3)
    expected = run.network.apply(run.params, run.state, frames)[0]
    np.testing.assert_allclose(json.loads(result.stdout), expected, rtol=1e-5, atol=1e-6)


def test_of_a_stream(tmp_path):
    config = autoencoder.get_config("smoke")
    autoencoding.train_and_evaluate(config, tmp_path, QUIET)
    run = trained.load(tmp_path)
    assert run.classes == ()
    frame = np.full((1, 16, 16, 3), 100, np.uint8)
    output, _ = jax.jit(run.network.apply)(run.params, run.state, frame)
    assert output.shape == frame.shape
    fresh, _ = jax.jit(run.network.init)(jax.random.key(config.seed), frame)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), run.params, fresh)
    assert all(jax.tree.leaves(changed[0]))


@pytest.mark.full
@pytest.mark.parametrize("execution", ["depth_sharded", "program_per_device"])
def test_of_a_stream_on_several_devices(execution, tmp_path):
    config = autoencoder.get_config("smoke")
    config.execution, config.mesh.depth = execution, 3
    autoencoding.train_and_evaluate(config, tmp_path, QUIET)
    assert_tests_as_logged(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("job", ["quickstart", "autoencoder"])
def test_of_two_processes(job, tmp_path):
    """Which this process, of 8 devices, and another one with a single device load."""
    flags = tiny.overrides(train__num_steps=6) if job == "quickstart" else []
    command = [
        sys.executable, "experiments/launch.py", "--processes=2", f"--logs={tmp_path}", "--",
        "python", "experiments/main.py", f"--workdir={tmp_path}/run",
        f"--config=experiments/configs/{job}.py:smoke,execution=depth_sharded,depth=2", *flags,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if job == "autoencoder":
        assert_tests_as_logged(tmp_path / "run")
    else:
        run = trained.load(tmp_path / "run")
        logged = [line for line in tiny.lines(tmp_path / "run") if line["split"] == "test"]
        assert loss_of(run) == pytest.approx(logged[-1]["loss"], rel=1e-5)
    assert_loads_on_one_device(tmp_path / "run", trained.load(tmp_path / "run"))


def assert_tests_as_logged(workdir):
    """The errors of a loaded auto-encoder are those that its run had measured."""
    run = trained.load(workdir)
    saved = autoencoding.evaluate_saved(
        run.config, run.config.data, *run[:3], workdir / "evaluation"
    )
    logged = [line for line in tiny.lines(workdir) if line["split"] == "test"]
    assert saved.scores.streaming_mse == pytest.approx(logged[-1]["streaming_mse"], rel=1e-5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_and_evaluate(tiny.config(train__num_steps=2), folder, QUIET)
    return folder


def test_errors_say_what_to_do(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the workdir of a run"):
        trained.load(tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint 7: give last, best, or one of 2"):
        trained.load(workdir, 7)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="nothing has been saved yet"):
        trained.load(tmp_path)


def test_old_workdirs_get_the_names_of_their_classes(workdir):
    (workdir / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"does not hold the names of its classes.*once more"):
        trained.load(workdir)
    train_and_evaluate(tiny.config(train__num_steps=2), workdir, QUIET)  # As the message says.
    assert len(trained.load(workdir).classes) == 10


def test_damage_is_named(workdir):
    files = (workdir / "checkpoints" / "2" / "train_state").rglob("d/*")
    file = max(files, key=lambda one: one.stat().st_size)
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=f"{file.name} is damaged.*another checkpoint"):
            trained.load(workdir)
    finally:
        file.write_bytes(whole)
