import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

import data
from experiments.configs import (
    autoencoder,
    cater,
    hmdb51,
    kinetics_csv,
    quickstart,
    ucf101,
    video_folder,
)
from experiments.configs._recognition import classifier
from experiments.configs.common import ArgumentError, parse_arguments
from experiments.examples import archives
from experiments.jobs.autoencoding import job as autoencoding_job
from experiments.jobs.classification import job as classification_job
from experiments.terminal.command_line import fields
from sideways_jax import models


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
        for module in (quickstart, video_folder, kinetics_csv, cater, hmdb51, ucf101)
    ]
    assert all(fields == common[0] for fields in common)
    assert {"seed", "rule", "execution", "optimizer.learning_rate", "eval.average"} < common[0]


def test_smoke_is_small_and_the_rest_the_same():
    config, smoke = quickstart.get_config(), quickstart.get_config("smoke")
    assert smoke.train.num_steps == 2 < config.train.num_steps
    assert smoke.model.to_dict() == config.model.to_dict()
    assert smoke.optimizer.to_dict() == config.optimizer.to_dict()


@pytest.mark.parametrize(("module", "steps"), [(ucf101, 1193), (hmdb51, 447)])
def test_the_protocol_of_the_paper(module, steps):
    config = module.get_config()
    assert (config.data.num_frames, config.data.size, config.data.batch_size) == (64, 112, 8)
    assert (config.data.variant, config.data.split, config.data.flip) == ("side_128", "1", True)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("adam", 1e-4)
    assert (optimizer.warmup_epochs, optimizer.drop_epochs) == (5.0, (100.0, 200.0))
    assert optimizer.drop_factor == 0.1
    assert config.train.num_steps == 250 * steps

    given = module.get_config(
        "model=vgg8,dropout=0.9,rule=backprop,split=3,stride=6,learning_rate=1e-5,weight_decay=0.01"
    )
    assert (given.rule, given.data.split, given.data.stride) == ("backprop", "3", 6)
    assert (given.model.name, given.model.dropout_rate) == ("vgg8", 0.9)
    assert (given.optimizer.learning_rate, given.optimizer.weight_decay) == (1e-5, 0.01)
    with pytest.raises(ArgumentError, match="only vgg8 has dropout, not simple_cnn"):
        module.get_config("dropout=0.9")


def test_the_list_of_example_videos(tmp_path):
    config = archives.with_examples(kinetics_csv.get_config("smoke"), tmp_path)
    source = data.load(config.data, seed=0)
    assert (source.classes, source.num_train, source.num_test) == (("falling", "rightwards"), 4, 2)
    assert (config.data.size, config.data.num_frames) == (28, 16)


def test_cater():
    config = cater.get_config("subset=max2action_cameramotion")
    assert (config.data.variant, config.data.split) == ("max2action_cameramotion", "localize")
    assert (config.data.size, config.data.labels, config.data.flip) == (240, True, False)
    assert not config.data.multi_label
    several = cater.get_config("subset=all_actions,task=actions_present").data
    assert (several.variant, several.multi_label) == ("all_actions", True)


@pytest.mark.parametrize("module", [quickstart, ucf101, autoencoder])
def test_activations_in_bfloat16(module):
    config = module.get_config("smoke")
    config.model.dtype = "bfloat16"
    if module is autoencoder:
        network = autoencoding_job.make_network(config.model)
    else:
        network = classification_job.make_network(config.model, 3)
    frame = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(lambda key: network.init(key, frame), jax.random.key(0))
    *inner, output = network.activation_shapes(params, state, frame)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(inner)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, output))} == {"float32"}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_has_a_config(name, small):
    """With the arguments, and the cut, that the network has by default."""
    config = ConfigDict(classifier(name, 0.0, small=small))
    assert classification_job.make_network(config, 3).depth == models.make(name, 3).depth
    assert ("weights" in config) == (name in models.PRETRAINED)
