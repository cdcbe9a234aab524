import pytest

from experiments.command_line import fields
from experiments.configs import quickstart, video_folder
from experiments.configs.common import ArgumentError, parse_arguments


def test_arguments():
    defaults = {"rule": "sideways", "smoke": False, "depth": 1, "scale": 1.0}
    assert parse_arguments("", **defaults).to_dict() == defaults
    given = parse_arguments("smoke, depth=3,rule=backprop,scale=2", **defaults)
    assert given.to_dict() == {"rule": "backprop", "smoke": True, "depth": 3, "scale": 2.0}
    assert parse_arguments("smoke=true", **defaults).smoke
    assert not parse_arguments("smoke=False", **defaults).smoke


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rul=backprop", "unknown config argument 'rul'; did you mean 'rule'?"),
        ("smokey", "did you mean 'smoke'?"),
        ("depth", "'depth' needs a value: depth=1, for example"),
        ("depth=two", "depth='two' must be of type int"),
        ("smoke=2", "smoke='2' must be true or false"),
    ],
)
def test_bad_arguments(text, said):
    with pytest.raises(ArgumentError) as error:
        parse_arguments(text, rule="sideways", smoke=False, depth=1)
    assert said in str(error.value)


def test_every_config_has_the_same_fields():
    """What is common stays common: training reads these of any config."""
    common = [
        {name for name in fields(module.get_config()) if not name.startswith(("model.", "data."))}
        for module in (quickstart, video_folder)
    ]
    assert common[0] == common[1]
    assert {"seed", "rule", "execution", "optimizer.learning_rate", "eval.average"} < common[0]


def test_smoke_is_small_and_the_rest_the_same():
    config, smoke = quickstart.get_config(), quickstart.get_config("smoke")
    assert smoke.train.num_steps == 2 < config.train.num_steps
    assert smoke.model.to_dict() == config.model.to_dict()
    assert smoke.optimizer.to_dict() == config.optimizer.to_dict()
