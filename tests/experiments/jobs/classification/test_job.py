"""Real runs of tiny experiments."""

import importlib
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from data import load
from experiments.configs import video_folder
from experiments.examples import videos
from experiments.jobs.classification import job
from experiments.jobs.classification.job import (
    make_network,
    make_train_step,
    prepare,
    train_and_evaluate,
)
from experiments.jobs.classification.losses import cross_entropy
from experiments.running.execution import choose
from experiments.running.optimizer import make_tx
from experiments.running.stopping import NonFiniteError, Stopped
from experiments.workdir.checkpoints import Checkpoints
from sideways_jax import step
from sideways_jax.training.paper_optimizer import make_optimizer
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIGS = ("quickstart", "video_folder")  # `.ci/run` does it with every config


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_of_a_config(name, tmp_path):
    module = importlib.import_module(f"experiments.configs.{name}")
    config = module.get_config("smoke").lock()
    summary = train_and_evaluate(config, tmp_path, Console(quiet=True))
    assert summary.steps == config.train.num_steps == 2
    assert 0 <= summary.test_accuracy <= 1
    assert json.loads((tmp_path / "config.json").read_text())["rule"] == summary.rule
    assert json.loads((tmp_path / "summary.json").read_text()) == summary._asdict()
    assert {(line["step"], line["split"]) for line in tiny.lines(tmp_path)} >= {
        (2, "train"),
        (2, "test"),
    }
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    for picture in ("training_curves.png", "test_clips.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_vgg_and_scan(tmp_path):
    module = importlib.import_module("experiments.configs.video_folder")
    config = module.get_config("smoke,model=vgg8,execution=scan").lock()
    assert train_and_evaluate(config, tmp_path, Console(quiet=True)).execution == "scan"


@pytest.mark.full
@pytest.mark.timeout(1800)  # DenseNet has 63 layers to compile.
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "googlenet", "vit_s16"])
def test_larger_networks(name, tmp_path):
    config = video_folder.get_config(f"smoke,model={name}")
    if name == "densenet121":
        config.data.size = 32  # 29x29 pixels at least
    assert train_and_evaluate(config, tmp_path, Console(quiet=True)).steps == 2


def test_arguments_reach_the_config():
    for name in CONFIGS:
        module = importlib.import_module(f"experiments.configs.{name}")
        config = module.get_config("rule=backprop,execution=scan")
        assert (config.rule, config.execution) == ("backprop", "scan")


def test_log_has_means_and_every_evaluation(tmp_path):
    """With log_every=2 each line is the mean of two steps, which log_every=1 writes apart."""
    train_and_evaluate(tiny.config(), tmp_path / "two", Console(quiet=True))
    train_and_evaluate(tiny.config(train__log_every=1), tmp_path / "one", Console(quiet=True))
    two, one = (
        [line for line in tiny.lines(tmp_path / name) if line["split"] == "train"]
        for name in ("two", "one")
    )
    assert [line["step"] for line in two] == [2, 4, 6]
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    for line, first, second in zip(two, one[::2], one[1::2], strict=True):
        for name in ("loss", "accuracy", "grad_norm"):
            assert line[name] == (first[name] + second[name]) / 2
    tests = [line for line in tiny.lines(tmp_path / "two") if line["split"] == "test"]
    assert [line["step"] for line in tests] == [3, 6]
    assert all(line["videos"] == 20 and line["frames"] == 20 * 5 for line in tests)


def test_train_step_is_that_of_the_library():
    """Batches as the data come, [B, K, ...], against frames [K, B, ...] made by hand."""
    config = tiny.config(rule="sideways", optimizer__weight_decay=0.1)
    source = load(config.data, seed=0)
    network = make_network(config.model, len(source.classes))
    execution = choose(config, network.depth)
    init, train_step = make_train_step(
        config, network, make_tx(config.optimizer, source.steps_per_epoch), execution
    )
    batch = next(iter(source.train))
    state, metrics = jax.jit(train_step)(init(jax.random.key(3)), batch)

    library_init, library_step = step.make_train_step(
        network,
        cross_entropy,
        make_optimizer(
            "adam", 0.01, steps_per_epoch=10, weight_decay=0.1, warmup_epochs=0.0, drop_epochs=()
        ),
        execution="time_parallel",
    )
    frames = jnp.stack([batch["frames"][:, k] for k in range(config.data.num_frames)])
    labels = jnp.stack([jnp.asarray(batch["label"])] * config.data.num_frames)
    expected, expected_metrics = jax.jit(library_step)(
        library_init(jax.random.key(3), frames[0]), frames, labels
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert metrics["loss"] == expected_metrics["loss"]
    assert metrics["finite"]


@pytest.mark.parametrize("checkpoint_every", [1, 0])
def test_not_finite(tmp_path, checkpoint_every):
    """Stops at the step, says which, and keeps the checkpoints of before, and only those."""
    # The first update has no rate, the second an absurd one: the third step sees what it did.
    config = tiny.config(
        optimizer__learning_rate=1e30,
        optimizer__warmup_epochs=1.0,
        train__checkpoint_every=checkpoint_every,
        train__eval_every=0,
        train__log_every=1,
    )
    with pytest.raises(NonFiniteError, match=r"(at|after) step 3") as error:
        train_and_evaluate(config, tmp_path, Console(quiet=True))
    assert error.value.step == 3
    assert [line["step"] for line in tiny.lines(tmp_path)] == [1, 2]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == (2 if checkpoint_every else None)
    if not checkpoint_every:
        assert "No checkpoint had been saved yet" in str(error.value)
        return
    assert f"step 2, is kept in {tmp_path / 'checkpoints'}" in str(error.value)
    # The last good one can be gone on from, and leads to the same place.
    with pytest.raises(NonFiniteError, match="step 3"):
        train_and_evaluate(config, tmp_path, Console(quiet=True))


def test_another_config_is_refused(tmp_path):
    train_and_evaluate(tiny.config(train__num_steps=2), tmp_path, Console(quiet=True))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds another experiment") as error:
        train_and_evaluate(
            tiny.config(seed=1, data__speed=0.5, train__num_steps=4), tmp_path, Console(quiet=True)
        )
    assert "data.speed was 1.0 there and is 0.5 now; seed was 0 there and is 1 now" in str(
        error.value
    )
    assert "num_steps" not in str(error.value).partition("Use another")[0]
    with pytest.raises(ValueError, match=r"for 2 steps already, train\.num_steps=1 are fewer"):
        train_and_evaluate(tiny.config(train__num_steps=1), tmp_path, Console(quiet=True))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_more_steps_later(tmp_path):
    train_and_evaluate(tiny.config(), tmp_path / "whole", Console(quiet=True))
    for steps in (3, 6):
        config = tiny.config(train__num_steps=steps)
        train_and_evaluate(config, tmp_path / "later", Console(quiet=True))
    whole, later = tiny.lines(tmp_path / "whole"), tiny.lines(tmp_path / "later")
    # 3 is no multiple of log_every: the first part ended with a line of step 3 alone.
    extra = [line for line in later if line not in whole]
    assert [(line["step"], line["split"]) for line in extra] == [(3, "train")]
    later.remove(*extra)
    assert later == whole


def test_a_finished_run_is_shown_again(tmp_path):
    first = train_and_evaluate(tiny.config(), tmp_path, Console(quiet=True))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = train_and_evaluate(tiny.config(), tmp_path, Console(quiet=True))
    assert again == first._replace(steps_per_second=None)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_interrupted_while_evaluating(tmp_path, monkeypatch):
    """The evaluation that was broken off is made when the run goes on."""
    config = tiny.config()
    train_and_evaluate(config, tmp_path / "whole", Console(quiet=True))

    make = job.make_evaluate

    def make_interrupted(*arguments, **options):
        evaluate = make(*arguments, **options)

        def interrupted(params, state, batches, **options):
            def broken_off():
                for number, batch in enumerate(batches):
                    yield batch
                    if number == 1:
                        signal.raise_signal(signal.SIGINT)

            return evaluate(params, state, broken_off(), **options)

        return interrupted

    monkeypatch.setattr(job, "make_evaluate", make_interrupted)
    with pytest.raises(Stopped, match="Stopped at step 3 of 6, and saved"):
        train_and_evaluate(config, tmp_path / "broken", Console(quiet=True))
    monkeypatch.undo()
    train_and_evaluate(config, tmp_path / "broken", Console(quiet=True))
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_without_test_videos(tmp_path):
    summary = train_and_evaluate(tiny.config(data__num_test=0), tmp_path, Console(quiet=True))
    assert summary.test_accuracy is None
    assert {line["split"] for line in tiny.lines(tmp_path)} == {"train"}


def introduction(tmp_path):
    config = video_folder.get_config("smoke")
    config.example_videos = False
    config.data.path = str(tmp_path / "videos")
    return prepare(config, tmp_path / "run").introduction


def test_classes_that_make_no_sense_are_told(tmp_path):
    videos.write(tmp_path / "videos")
    assert "Warning" not in introduction(tmp_path)
    shutil.rmtree(tmp_path / "videos" / "test" / "rightwards")
    assert "Warning: no test video of 1 of 2 classes (rightwards): " in introduction(tmp_path)
    shutil.rmtree(tmp_path / "videos" / "train" / "rightwards")
    assert "Warning: there is one class, falling: nothing is learned" in introduction(tmp_path)


def test_what_failed_before_anything_was_saved_locks_nothing(tmp_path):
    failing = {"optimizer__learning_rate": 1e30, "optimizer__warmup_epochs": 1.0,
               "train__checkpoint_every": 0, "train__eval_every": 0}  # fmt: skip
    with pytest.raises(NonFiniteError, match="in this workdir, too"):
        train_and_evaluate(tiny.config(**failing), tmp_path, Console(quiet=True))
    options = {"train__num_steps": 2}
    train_and_evaluate(tiny.config(**options), tmp_path, Console(quiet=True))
    assert [line["step"] for line in tiny.lines(tmp_path)] == [2, 2]
