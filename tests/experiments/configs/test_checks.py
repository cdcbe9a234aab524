"""A config has the fields that its job reads: a wrong name in an own config file is an error."""

import pytest

from experiments.configs import autoencoder, quickstart, ucf101, video_folder
from experiments.configs._checks import check_fields
from experiments.configs._descriptions import describe
from experiments.jobs.classification.job import train_and_evaluate
from tests.experiments import tiny


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("rul", "rule"),
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("train.nsteps", "train.num_steps"),
        ("eval.averge", "eval.average"),
        ("test_streams", None),  # of the other job
    ],
)
def test_a_wrong_name_is_not_taken_in_silence(wrong, right, tmp_path):
    config = tiny.config().unlock()
    config.update_from_flattened_dict({wrong: 1})
    with pytest.raises(ValueError, match="unknown config field '") as error:
        train_and_evaluate(config, tmp_path / "run")
    assert f"'{wrong.split('.')[0]}" in str(error.value)
    if right:
        assert f"'{wrong}'; did you mean '{right}'?" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(tmp_path):
    config = tiny.config().unlock()
    del config["recompute"]
    del config.train["eval_every"]
    with pytest.raises(ValueError, match=r"the config lacks recompute, train\.eval_every"):
        check_fields(config)


def test_an_unknown_task():
    config = tiny.config()
    config.task = "classificaton"
    with pytest.raises(ValueError, match="unknown task 'classificaton'; did you mean"):
        check_fields(config)


@pytest.mark.parametrize("module", [autoencoder, quickstart, ucf101, video_folder])
def test_every_field_is_described(module):
    check_fields(module.get_config())
    described = describe(module.get_config(), module.__file__)
    without = [line.split("=")[0] for line in described if "  # " not in line]
    names = {name.split(".")[-1] for name in without}
    assert names <= {"name", "variant", "split", "widths", "hidden", "dropout_rate", "cut"}


def test_comments_are_those_of_the_field():
    described = dict(line.split("=", 1) for line in describe(quickstart.get_config()))
    assert described["  --config.train.num_steps"].startswith("1000  # weight updates in all")
    given = describe(video_folder.get_config(), video_folder.__file__)
    assert "  --config.train.num_steps=20000  # weight updates in all; may grow later" in given
    assert described["  --config.data.size"].startswith("28  # height and width of a clip")
    assert described["  --config.mesh.data"].startswith("1  # replicas")
    assert described["  --config.execution"].startswith("time_parallel  # One device: ")
