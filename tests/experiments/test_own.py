"""docs/own.md: a network and a data set of the user's own, from their files to a prediction."""

import contextlib
import importlib
import itertools
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from data import default_config, load_streams
from experiments import trained
from experiments.configs import autoencoder, cater
from experiments.examples.videos import write_video
from experiments.jobs.autoencoding import job as autoencoding
from experiments.jobs.classification.job import train_and_evaluate
from experiments.jobs.classification.prediction import classifier_of, predict
from sideways_jax import from_linen
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
CODE = re.findall(r"```python\n(.*?)```", (tiny.ROOT / "docs" / "own.md").read_text(), re.DOTALL)
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def usual_promotion():
    """Users do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The module `mine`, as docs/own.md has it; without its config, which is for the command."""
    (tmp_path / "mine.py").write_text("\n".join(CODE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def own_config(**fields):
    config = tiny.config().unlock()
    config.model = {"name": "mine:network", "width": 4}
    config.data = default_config("mine:stripes")
    config.data.size, config.data.count, config.data.batch_size = 12, 8, 4
    for name, value in fields.items():
        node, _, leaf = name.partition("__")
        config[node][leaf] = value
    return config


def test_network_and_data(mine):
    config = own_config(data__scale=(0.5, 1.0), data__colour=0.3, loss__label_smoothing=0.1,
                        optimizer__ema=0.9, optimizer__accumulate=2)  # fmt: skip
    summary = train_and_evaluate(config, mine / "run", QUIET)
    run = trained.load(mine / "run")
    assert (run.network.depth, run.classes) == (3, ("left", "right"))
    best = trained.load(mine / "run", "best")
    assert best.step == summary.best_step


def test_a_class_with_dropout_and_batch_normalisation(mine):
    block = from_linen(importlib.import_module("mine").Block())
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    params, state = block.init(jax.random.key(1), x)
    one, two = (block.apply(params, state, x, train=True, rng=jax.random.key(n))[0] for n in (2, 3))
    assert (one != two).any()
    _, moved = block.apply(params, state, x, train=True, rng=jax.random.key(2))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), state, moved)))
    tested, same = block.apply(params, state, x, train=False, rng=None)
    assert (tested > 0).mean() > (one > 0).mean()  # Nothing is dropped.
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), state, same)))


@pytest.mark.full
def test_the_command_with_workers(mine):
    (mine / "configured.py").write_text(
        "import data, mine\n"
        "def get_config(arguments=''):\n"
        "    config = mine.get_config('smoke')\n"
        "    config.data = data.default_config('mine:stripes')\n"
        "    config.data.num_workers = 1\n"
        "    return config\n"
    )
    result = subprocess.run(
        [sys.executable, tiny.ROOT / "experiments" / "main.py", "--config=configured.py",
         f"--workdir={mine / 'run'}", "--config.data.batch_size=4", "--config.data.size=12",
         "--config.model.width=2"],
        cwd=mine, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "mine:network, 3 modules" in result.stdout
    assert "mine:stripes: 2 classes, 40 videos" in result.stdout


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model__name": "nowhere:network"}, "network 'nowhere:network': there is no module"),
        (
            {"model__name": "nowhere:network"},
            "run the command where nowhere.py is, or add that folder to PYTHONPATH",
        ),
        ({"model__name": "mine.py:network"}, "'mine.py:network': give MODULE:NAME"),
        ({"model__name": "/here/mine:network"}, "'/here/mine:network': give MODULE:NAME"),
        ({"model__name": "mine:nothing"}, "network 'mine:nothing': mine has no nothing"),
        ({"model__name": "mine:Stripes"}, "not a sideways_jax.Network"),
        ({"data__name": "mine:network"}, "data set 'mine:network' has no default_config"),
    ],
)
def test_wrong_names(mine, fields, said):
    config = own_config(**fields)
    if fields.get("model__name") == "mine:Stripes":
        del config.model["width"]
    with pytest.raises(ValueError, match=said):
        train_and_evaluate(config, mine / "run", QUIET)


def test_an_output_for_every_class(mine):
    text = (mine / "mine.py").read_text().replace("nn.Dense(num_classes)", "nn.Dense(7)")
    (mine / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=r"logits of the shape \(4, 2\), a number for each class"):
        train_and_evaluate(own_config(), mine / "run", QUIET)


def test_a_stream(mine):
    frames = importlib.import_module("mine").arriving(48)
    with contextlib.closing(load_streams(default_config("mine:window"), seed=0)) as streams:
        batches = list(itertools.islice(streams, 20))
    for n, (batch, frame) in enumerate(zip(batches, frames, strict=False)):
        np.testing.assert_array_equal(batch["frames"], [frame])
        assert batch["reset"].tolist() == [n == 0]
    assert (batches[0]["frames"] != batches[-1]["frames"]).all()
    with pytest.raises(ValueError, match="nothing to test on"):
        load_streams(default_config("mine:window"), seed=0, split="test")


@pytest.mark.full
def test_a_network_learns_from_a_stream(mine):
    config = autoencoder.get_config("data=mine:window,smoke")
    config.data.batch_size, config.test_streams = 1, False
    summary = autoencoding.train_and_evaluate(config, mine / "run", QUIET)
    assert (summary.frames, summary.scores) == (22, None)
    run = trained.load(mine / "run")
    frame = next(importlib.import_module("mine").arriving(16))
    painted, _ = run.network.apply(run.params, run.state, frame[None])
    assert (painted.shape, run.classes) == ((1, 16, 16, 3), ())


def test_several_classes_to_a_video(tmp_path):
    """CATER's task with several actions a video: to train, to test, and to predict."""
    config = cater.get_config("smoke,subset=all_actions,task=actions_present")
    config.model.widths, config.model.cut = (4, 4, 4, 4, 4), (2, 2, 2)
    config.data.num_frames = 6
    config.loss.label_smoothing = 0.1
    summary = train_and_evaluate(config, tmp_path, QUIET)
    assert summary.test_accuracy is not None
    *_, line = (line for line in tiny.lines(tmp_path) if line["split"] == "test")
    assert 0 < line["mean_average_precision"] <= 1
    run = trained.load(tmp_path)
    assert run.multi_label
    write_video(tmp_path / "video.avi", 0, (1, 0))
    [one] = predict(classifier_of(run, 32), [str(tmp_path / "video.avi")], live_frames=0)
    assert one.probabilities.shape == (len(run.classes),)
    assert abs(one.probabilities.sum() - 1) > 1e-3  # Each class has a sigmoid of its own.
