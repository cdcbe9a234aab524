"""A run that is interrupted, whatever way, ends up as one that is not: bit for bit, on the CPU."""

import jax
import numpy as np
import pytest

from data import load
from experiments.jobs.classification.job import make_network, make_train_step
from experiments.running.execution import choose
from experiments.running.optimizer import make_tx
from experiments.workdir.checkpoints import Checkpoints
from tests.experiments import tiny

STEPS = {
    "train__num_steps": 60,
    "train__log_every": 7,
    "train__checkpoint_every": 10,
    "train__eval_every": 30,
}


def flags(workdir, **fields):
    return [
        "--config=experiments/configs/quickstart.py:smoke",
        f"--workdir={workdir}",
        *tiny.overrides(**(STEPS | fields)),
    ]


def final_state(workdir, **fields):
    """The leaves of the last checkpoint of a run, and the position in its data."""
    config = tiny.config(**(STEPS | fields))
    source = load(config.data, seed=config.seed)
    network = make_network(config.model, len(source.classes))
    execution = choose(config, network.depth)
    init, _ = make_train_step(
        config, network, make_tx(config.optimizer, source.steps_per_epoch), execution
    )
    batches = iter(source.train)
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(
            checkpoints.latest, init(jax.random.key(config.seed)), batches
        )
    state = restored.train_state
    state = state._replace(rng=jax.random.key_data(state.rng))
    return checkpoints.latest, jax.tree.leaves(state), batches.get_state()


def assert_same_run(workdir, other):
    assert (workdir / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    step, leaves, position = final_state(workdir)
    other_step, other_leaves, other_position = final_state(other)
    assert step == other_step == STEPS["train__num_steps"]
    assert position == other_position
    assert all(map(np.array_equal, leaves, other_leaves))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    result = tiny.run_main(*flags(workdir))
    assert result.returncode == 0, result.stderr
    return workdir


def test_interrupted_and_killed(uninterrupted, tmp_path):
    # Ctrl-C, with the batches made by another process, which gets it, too.
    status, errors = tiny.stop_main(
        *flags(tmp_path, data__num_workers=1),
        workdir=tmp_path,
        after=4,
        signal_number=tiny.SIGINT,
    )
    assert status == 130, errors
    assert "Run the same command again to go on." in errors
    assert "Traceback" not in errors
    with Checkpoints(tmp_path) as checkpoints:
        stopped_at = checkpoints.latest
    assert 4 <= stopped_at < 60
    assert f"Stopped at step {stopped_at} of 60, and saved." in errors

    # Killed at a step that no checkpoint is of, with lines of the log beyond the last one.
    status, errors = tiny.stop_main(
        *flags(tmp_path), workdir=tmp_path, after=stopped_at + 11, signal_number=tiny.SIGKILL
    )
    assert status == -9, errors
    with Checkpoints(tmp_path) as checkpoints:
        assert stopped_at < checkpoints.latest < 60
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 99, "spl')  # As if it had been killed while it wrote.

    result = tiny.run_main(*flags(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "Going on from step" in result.stdout
    assert_same_run(tmp_path, uninterrupted)
