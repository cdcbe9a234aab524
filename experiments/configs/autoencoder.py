"""An auto-encoder that learns a stream online, frame by frame: the paper's second task.

python experiments/main.py --config=experiments/configs/autoencoder.py --workdir=/tmp/autoencoder

A video file (or a camera, as a number) instead of drawn scenes:

python experiments/main.py --config=experiments/configs/autoencoder.py:data=video_file \
    --config.data.path=FILE --workdir=/tmp/mine

Arguments, after a colon: `rule=backprop` for blocking backprop on the same stream;
`data=video_file`; `execution=depth_sharded,depth=2`; `skip` for shortcuts from the frame to modules
1 and 2 (Skip-Sideways); `smoke` for two steps; `paper` for the setting
of sections 4.1 and 4.5: 240x240 pixels, widths 32 to 256, no normalisation, 8 streams, for a GPU.
The paper's result on CATER, not reproduced here, is an error of 0.002 with Sideways and 0.014 with
backprop (Table 3).

By default frames are 48x48, the widths half of the paper's, and the blocks of the encoder are
normalised: without that, Adam is unstable with an update at every step (docs/online.md).
"""

from ml_collections import ConfigDict

from data import default_config
from experiments.configs.common import base_config, parse_arguments


def get_config(arguments: str = "") -> ConfigDict:
    """The config, for arguments such as `"rule=backprop,smoke"`."""
    given = parse_arguments(
        arguments, rule="sideways", data="moving_solids", execution="scan", depth=0, skip=False,
        paper=False, smoke=False,
    )  # fmt: skip
    config = base_config(given)
    config.task = "autoencoding"
    del config["loss"]  # It is the squared error.
    config.model = {
        "name": "autoencoder",
        "widths": (16, 32, 32, 64, 128),
        "output_activation": "none",  # or sigmoid, tanh
        "pixel_range": (0.0, 1.0),  # the values of black and white
        "normalise": True,  # the output of every encoder block, over the channels of a pixel
        "dtype": "float32",  # of activations; bfloat16 halves their memory and messages
    }
    if given.skip:
        config.model.shortcuts = ((-1, 1), (-1, 2))  # from the frame, to modules
    config.data = default_config(given.data)
    config.data.size = 48
    config.data.batch_size = 4 if given.data == "moving_solids" else 1
    config.online = {
        "update_every": 1,  # frames from one weight update to the next (Sideways)
        "chunk": 66,  # frames of each stream that a step of the training loop takes
    }
    config.test_streams = True  # False where there is nothing to test on, such as a camera
    config.eval.count_missing = False  # whether no output yet counts as a black one

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 0.0  # an epoch stands for 1000 updates here
    config.optimizer.drop_epochs = ()
    config.train.num_steps = 200
    config.train.log_every = 5
    config.train.eval_every = config.train.checkpoint_every = 50
    if given.paper:
        config.model.widths = (32, 64, 64, 128, 256)
        config.model.normalise = False
        config.data.size = 240
        config.data.batch_size = 8
    if given.smoke:
        config.model.widths = (4, 4, 4, 4, 4)
        config.data.size = 16
        config.data.batch_size = 2
        config.online.chunk = 11
        if given.data == "moving_solids":
            config.data.length, config.data.num_train, config.data.num_test = 22, 4, 2
        config.train.num_steps = 2
        config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 1
    return config
