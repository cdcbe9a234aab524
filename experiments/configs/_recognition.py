"""What the configs of action recognition share: section 4.2 and 4.3 of the paper."""

from ml_collections import ConfigDict

from data import default_config
from experiments.configs.common import ArgumentError, base_config, parse_arguments

# The paper does not say how long it trained; its learning rate drops for the last time at epoch
# 200.
EPOCHS = 250


def recognition(
    arguments: str, name: str, num_train: int, variant: str | None = None, **extra: str
) -> tuple[ConfigDict, ConfigDict]:
    """The config for a data set, and the values of its arguments.

    Args:
      arguments: those after the colon of `--config`.
      name: the data set.
      num_train: training videos of split 1, for the number of steps.
      variant: of the builder's configuration in smoke tests.
      **extra: further arguments, and their defaults.
    """
    given = parse_arguments(
        arguments,
        model="simple_cnn",
        rule="sideways",
        stride=1,
        dropout=0.0,
        learning_rate=1e-4,
        weight_decay=0.0,
        execution="time_parallel",
        schedule="",
        depth=0,
        smoke=False,
        **extra,
    )
    config = base_config(given)
    config.model = classifier(given.model, given.dropout, small=given.smoke)

    config.data = default_config(name)  # 64 frames, batches of 8, the crops of the paper
    config.data.stride = given.stride
    config.data.num_workers = 4

    config.optimizer.learning_rate = given.learning_rate  # 1e-4 or 1e-5 in the paper
    config.optimizer.weight_decay = given.weight_decay  # 0, 1e-4, 1e-3 or 1e-2
    # Warm-up of 5 epochs, a tenth of the rate after 100 and after 200: the defaults.
    steps_per_epoch = -(-num_train // config.data.batch_size)
    config.train.num_steps = EPOCHS * steps_per_epoch
    config.train.log_every = 100
    config.train.checkpoint_every = config.train.eval_every = 5 * steps_per_epoch
    if given.smoke:
        config.example_videos = True  # tiny archives, built as the real ones are
        config.data.variant = variant or "smoke"
        config.data.num_frames = 16  # at least 2D-1, 15 for VGG-8
        config.data.size = 28
        config.data.batch_size = 2
        config.data.num_workers = 0
        config.train.num_steps = 2
        config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 1
    return config, given


def classifier(name: str, dropout: float, *, small: bool = False) -> dict:
    """`config.model` for one of the networks of `sideways_jax.models`.

    Args:
      name: of the network.
      dropout: the rate of VGG-8's linear layers; 0.9 in the paper, where it is used.
      small: whether the networks have a few channels each; simple_cnn is small.
    """
    if name == "vgg8":
        divisor = 16 if small else 1
        return {
            "name": name,
            "widths": tuple(width // divisor for width in (96, 256, 512, 512, 512)),
            "hidden": tuple(width // divisor for width in (4096, 2048)),
            "dropout_rate": dropout,
            "cut": (1,) * 8,  # layers of each module
            "dtype": "float32",  # of activations; bfloat16 halves their memory and messages
        }
    if dropout:
        raise ArgumentError(
            f"config argument dropout={dropout:g}: only vgg8 has dropout, not {name}"
        )
    if name == "simple_cnn":
        return {
            "name": name,
            "widths": (32, 64, 64, 128, 256),
            "cut": (1,) * 6,
            "dtype": "float32",
        }
    return {"name": name, **_larger(name, small)}


def _larger(name: str, small: bool) -> dict:
    """The fields of a network that is not of the paper."""
    of_all = {
        "dtype": "float32",  # of activations; bfloat16 halves their memory and messages
        # A file with pretrained weights, as Hugging Face has them: safetensors; "": none.
        "weights": "",
    }
    if name in ("resnet18", "resnet50"):
        return {
            "width": 8 if small else 64,  # channels of the stem
            "cut": (2, 2, 2, 2, 2) if name == "resnet18" else (3, 2, 2, 2, 2, 2, 2, 3),
        } | of_all
    if name == "vit_s16":
        return {
            "width": 24 if small else 384,  # channels of a token
            "heads": 6,  # of the attention
            "blocks": 12,  # of attention; the cut is of two layers more
            "patch": 14 if small else 16,  # height and width of a token, pixels
            "cut": (3, 2, 2, 2, 2, 3),
        } | of_all
    del of_all["weights"]  # There is no layout for these.
    if name == "densenet121":
        return {
            "growth": 4 if small else 32,  # channels that a layer adds
            "cut": (3, 2, 2, 7, 6, 15, 11, 17),
        } | of_all
    if name == "googlenet":
        return {
            "divisor": 16 if small else 1,  # of all numbers of channels
            "dropout_rate": 0.2,  # before the last layer
            "cut": (1, 1, 2, 3, 2, 3),
        } | of_all
    return {}  # models.make raises, with the valid names
