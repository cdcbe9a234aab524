"""Runs that start from another run, or from a file with pretrained weights."""

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import trained
from experiments.configs import autoencoder
from experiments.configs._recognition import classifier
from experiments.jobs.autoencoding import job as autoencoding
from experiments.jobs.classification import job
from experiments.jobs.classification.job import train_and_evaluate
from tests.experiments import tiny
from tests.sideways_jax.models.test_pretrained import resnet18_file, write

pytestmark = pytest.mark.usefixtures("quick_compile")
QUIET = Console(quiet=True)
DIRECTIONS = {"data__task": "direction", "data__num_train": 6, "data__num_test": 2}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    train_and_evaluate(tiny.config(train__num_steps=2), folder, QUIET)
    return folder


def leaves(*trees):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]


def assert_same(given, expected):
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("fields", [{}, {"model__cut": (1, 2, 3), "optimizer__ema": 0.9}])
def test_another_run(digits, tmp_path, fields):
    """With the modules that it has, or cut into others; the average starts there, too."""
    prepared = job.prepare(tiny.config(init_from=str(digits), **fields), tmp_path)
    there, begun = trained.load(digits), prepared.init()
    assert_same(leaves(begun.params, begun.state), leaves(there.params, there.state))
    assert f"\nStarts from {digits}, step 2." in prepared.introduction
    if fields:
        average = job.params_for_tests(begun.params, begun.opt_state)
        assert_same(leaves(average), leaves(there.params))


def test_other_classes_get_a_head_of_their_own(digits, tmp_path):
    config = tiny.config(init_from=str(digits), train__num_steps=2, **DIRECTIONS)
    prepared = job.prepare(config, tmp_path)
    there, begun = trained.load(digits), prepared.init()
    bias, kernel = leaves(begun.params)[-2:]
    assert (bias.shape, kernel.shape) == ((8,), (4, 8))
    assert kernel.std() > 0
    assert_same(leaves(begun.params)[:-2], leaves(there.params)[:-2])
    assert "the head is new: its classes there are 10 ('0', '1', '2', ...), and are 8 ('right'" in (
        prepared.introduction
    )
    train_and_evaluate(config, tmp_path, QUIET)
    assert trained.load(tmp_path).classes[0] == "right"


def test_as_many_classes_with_other_names(digits, tmp_path):
    """The labels mean something else, so the head is drawn."""
    names = tmp_path / "other"
    names.mkdir()
    for one in digits.iterdir():
        (names / one.name).symlink_to(one)
    (names / "classes.json").unlink()
    text = (digits / "classes.json").read_text().replace('"9"', '"nine"')
    (names / "classes.json").write_text(text)
    begun = job.prepare(tiny.config(init_from=str(names)), tmp_path / "run").init()
    given, there = leaves(begun.params), leaves(trained.load(digits).params)
    assert_same(given[:-2], there[:-2])
    assert (given[-1] != there[-1]).any()


def test_a_run_that_goes_on_starts_no_more(digits, tmp_path):
    config = tiny.config(init_from=str(tmp_path / "moved"), train__num_steps=2)
    with pytest.raises(FileNotFoundError, match="moved is not the workdir of a run"):
        train_and_evaluate(config, tmp_path / "run", QUIET)
    (tmp_path / "moved").symlink_to(digits)
    train_and_evaluate(config, tmp_path / "run", QUIET)
    (tmp_path / "moved").unlink()
    longer = config.copy_and_resolve_references().unlock()
    longer.train.num_steps = 4
    assert train_and_evaluate(longer, tmp_path / "run", QUIET).steps == 4


def test_on_several_devices(digits, tmp_path):
    config = tiny.config(init_from=str(digits), execution="depth_sharded", mesh__depth=2)
    prepared = job.prepare(config, tmp_path)
    begun = prepared.to_modules(prepared.init())
    assert_same(leaves(begun.params), leaves(trained.load(digits).params))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model__widths": (4, 4, 4, 4, 6)},
            r"another network: model.widths was \(4, 4, 4, 4, 4\) there and is \(4, 4, 4, 4, 6\); "
            r"parameter 4 conv/kernel is \[3, 3, 4, 4\] there and has to be \[3, 3, 4, 6\]",
        ),
        ({"model__widths": (4, 4, 4, 4), "model__cut": (5,)}, "is there and not here"),
    ],
)
def test_another_network(digits, tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        job.prepare(tiny.config(init_from=str(digits), **fields), tmp_path)


def test_what_cannot_be_started_from(digits, tmp_path):
    with pytest.raises(ValueError, match="is the workdir of this run, which goes on by itself"):
        job.prepare(tiny.config(init_from=str(tmp_path)), tmp_path)
    config = autoencoder.get_config("smoke")
    config.init_from = str(digits)
    with pytest.raises(ValueError, match="with task='classification', this one has 'autoencoding'"):
        autoencoding.prepare(config, tmp_path)


def test_an_auto_encoder(tmp_path):
    config = autoencoder.get_config("smoke")
    autoencoding.train_and_evaluate(config, tmp_path / "first", QUIET)
    config.init_from, config.seed = str(tmp_path / "first"), 1
    prepared = autoencoding.prepare(config, tmp_path / "second")
    assert_same(leaves(prepared.init().params), leaves(trained.load(tmp_path / "first").params))
    assert "Starts from" in prepared.introduction


def small_resnet(**fields):
    config = tiny.config(data__size=16, data__num_frames=9, data__length=9, **fields).unlock()
    config.model = classifier("resnet18", 0.0, small=True) | {"width": 4}
    return config


@pytest.fixture
def pretrained(tmp_path):
    """A config with a file of 1000 classes."""
    write(tmp_path / "model.safetensors", resnet18_file(width=4, classes=1000))
    config = small_resnet(train__num_steps=2)
    config.model["weights"] = str(tmp_path)
    return config


def test_pretrained_weights(pretrained, tmp_path):
    prepared = job.prepare(pretrained, tmp_path / "run")
    assert "is new: the file has one of 1000." in prepared.introduction
    stem = prepared.init().params[0][0]["layer0"]["conv"]["kernel"]
    there = resnet18_file(width=4)["resnet.embedder.embedder.convolution.weight"]
    np.testing.assert_array_equal(stem, there.transpose(2, 3, 1, 0))


@pytest.mark.full
def test_a_run_needs_the_file_at_its_start(pretrained, tmp_path):
    config = pretrained
    train_and_evaluate(config, tmp_path / "run", QUIET)
    (tmp_path / "model.safetensors").unlink()
    assert trained.load(tmp_path / "run").network.depth == 5
    config.train.num_steps = 3
    assert train_and_evaluate(config, tmp_path / "run", QUIET).steps == 3
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model.safetensors"):
        job.prepare(config, tmp_path / "other")


def test_weights_of_another_network(tmp_path):
    write(tmp_path / "file", resnet18_file(width=8))
    config = small_resnet()
    config.model["weights"] = str(tmp_path / "file")
    with pytest.raises(ValueError, match=r"model.weights=.*is \[8, 3, 7, 7\] and has to be \[4"):
        job.prepare(config, tmp_path)
    config.init_from = str(tmp_path)
    with pytest.raises(ValueError, match="starts from one of the two; leave out the other"):
        job.prepare(config, tmp_path)


def test_a_network_by_its_name_alone(tmp_path):
    config = tiny.config(model__name="resnet18")
    with pytest.raises(
        ValueError, match=r"model has widths, which resnet18 has not.*:model=resnet"
    ):
        job.prepare(config, tmp_path)
