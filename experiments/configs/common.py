"""The fields of configs, and the arguments after the colon of `--config=FILE:...`."""

from absl import flags
from ml_collections import ConfigDict

from experiments.terminal.closest import did_you_mean

DTYPES = ("float32", "bfloat16")  # that `model.dtype` may be


class ArgumentError(flags.Error):
    """A bad argument of a config; as a `flags.Error` it is reported without a traceback."""


def parse_arguments(text: str, **defaults: bool | int | float | str) -> ConfigDict:
    """Reads `key=value,key=value,...`; an unknown key or a value of another type is an error.

    Args:
      text: the arguments. A bool needs no value: `smoke` means `smoke=true`.
      **defaults: the default of every argument, which also gives its type.

    Returns:
      The values, a locked ConfigDict.

    Raises:
      ArgumentError: it names the closest argument.

    >>> parse_arguments("rule=backprop,smoke", rule="sideways", smoke=False).to_dict()
    {'rule': 'backprop', 'smoke': True}
    >>> parse_arguments("rul=backprop", rule="sideways", smoke=False)
    Traceback (most recent call last):
    ...
    experiments.configs.common.ArgumentError: unknown config argument 'rul'; did you mean 'rule'? \
Valid: 'rule' (default 'sideways'), 'smoke' (default False)
    """
    values = ConfigDict(defaults)
    for argument in filter(None, (part.strip() for part in text.split(","))):
        key, has_value, value = (part.strip() for part in argument.partition("="))
        if key not in defaults:
            valid = ", ".join(f"{k!r} (default {v!r})" for k, v in defaults.items())
            raise ArgumentError(
                f"unknown config argument {key!r}; {did_you_mean(key, defaults)}Valid: {valid}"
            )
        if not has_value and not isinstance(defaults[key], bool):
            raise ArgumentError(
                f"config argument {key!r} needs a value: {key}={defaults[key]!s}, for example"
            )
        values[key] = _convert(key, value if has_value else "true", defaults[key])
    return values.lock()


def base_config(given: ConfigDict | None = None) -> ConfigDict:
    """The fields of every config, with the defaults that do not depend on the data.

    Args:
      given: arguments of the config; "rule", "execution", "schedule" and "depth" set their fields.

    The config fills in `model` (`model.name` and the arguments of that network) and `data`
    (`data.name` and the fields of that data set).
    """
    config = ConfigDict(
        {
            "task": "classification",  # of videos; or autoencoding of a stream, online
            "seed": 0,  # of everything: parameters, clips, dropout
            "rule": "sideways",  # or pipelined_backprop, backprop (docs/rules.md)
            # One device: time_parallel, or scan, whose memory does not depend on the clip length.
            # Several: both with mesh.data, which divides batches of clips; program_per_device, in
            # one process, or depth_sharded, which spread modules. auto: by the devices there are.
            "execution": "time_parallel",
            "schedule": "",  # of backprop on several devices: blocking, gpipe or 1f1b
            "recompute": True,  # with a schedule: keep inputs and compute twice, or keep residuals
            "mesh": {
                "depth": 0,  # devices along the depth of the network; 0: as many as there are
                "data": 1,  # replicas that share every batch
                "groups": (),  # how many modules each device takes; (): balanced by their cost
            },
            "target": "stream",  # or origin: which frame's target an output is compared with
            # Train on a few tiny videos that are written into the workdir: for smoke tests.
            "example_videos": False,
            "init_from": "",  # the workdir of a run whose weights this one starts from
            "model": {"name": "simple_cnn"},
            "data": {},
            "optimizer": {
                "name": "adam",  # or adamw, sgd, momentum; weight_decay is decoupled in all
                "learning_rate": 1e-3,  # after the warm-up
                "momentum": 0.9,  # of name=momentum
                "clip_value": 1.0,  # of every entry of the averaged gradient; 0 for no clipping
                "weight_decay": 0.0,  # how fast parameters decay
                "decay_coupling": "learning_rate",  # or schedule: what the decay is multiplied by
                "warmup_epochs": 5.0,  # in which the rate grows from 0
                "drop_epochs": (100.0, 200.0),  # after which the rate drops ...
                "drop_factor": 0.1,  # ... to this part of it
                # The epoch at which the rate is 0, if it falls as a cosine; 0: drops.
                "cosine_epochs": 0.0,
                "accumulate": 1,  # batches whose mean gradient makes one update
                "ema": 0.0,  # decay of an average of the parameters, to test with; 0: none
            },
            "loss": {
                "label_smoothing": 0.0,  # how much of a label is spread over all classes
                "class_weights": (),  # a factor for each class; (): 1
                "balanced": False,  # factors by how rare classes are
            },
            "train": {
                "num_steps": 1000,  # weight updates in all; may grow later
                "log_every": 10,  # steps; a line of metrics is their mean
                "checkpoint_every": 200,  # steps; 0: at the end alone
                "eval_every": 200,  # steps; 0: at the end alone
            },
            "eval": {
                # The average over all frames of a test video: of logits or probabilities.
                "average": "logits",
            },
        }
    )
    given = given or {}
    for name in ("rule", "execution", "schedule"):
        config[name] = given.get(name, config[name])
    config.mesh.depth = given.get("depth", config.mesh.depth)
    return config


def _convert(key: str, value: str, default: bool | int | float | str) -> bool | int | float | str:
    if isinstance(default, bool):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ArgumentError(f"config argument {key}={value!r} must be true or false")
    try:
        return type(default)(value)
    except ValueError:
        kind = type(default).__name__
        raise ArgumentError(f"config argument {key}={value!r} must be of type {kind}") from None
