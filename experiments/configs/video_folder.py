"""Your own videos, a folder for each class: DIR/CLASS/*.avi|mp4|mkv|mov|webm.

python experiments/main.py --config=experiments/configs/video_folder.py \
    --config.data.path=DIR --workdir=/tmp/videos

DIR may have the folders `train` and `test` with the classes inside; otherwise `data.test_fraction`
of every class is kept for testing. Clips of 64 frames, 112x112 pixels, in batches of 8, Adam with a
learning rate of 1e-4, as for HMDB51 and UCF101 in section 4.2 of the paper.

This is made for a GPU. On a CPU, `--config.data.size=64 --config.data.resize=72
--config.data.num_frames=16` leaves a twelfth of the pixels.

Arguments, after a colon: `model=vgg8` (docs/networks.md), `rule=backprop`, `execution=scan`;
`smoke` for two steps, on six tiny videos that it writes into the workdir if no path is given.
"""

from ml_collections import ConfigDict

from data import default_config
from experiments.configs._recognition import classifier
from experiments.configs.common import base_config, parse_arguments


def get_config(arguments: str = "") -> ConfigDict:
    """The config, for arguments such as `"model=vgg8,smoke"`."""
    given = parse_arguments(
        arguments,
        model="simple_cnn",
        rule="sideways",
        execution="time_parallel",
        schedule="",
        depth=0,
        smoke=False,
    )
    config = base_config(given)
    dropout = 0.9 if given.model == "vgg8" else 0.0
    config.model = classifier(given.model, dropout, small=given.smoke)
    config.data = default_config("video_folder")

    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 20_000
    config.train.checkpoint_every = config.train.eval_every = 500
    if given.smoke:
        config.example_videos = True
        config.data.num_frames = 16  # at least 2D-1, 15 for VGG-8
        config.data.size, config.data.resize = 28, 32
        config.data.batch_size = 2
        config.train.num_steps = 2
        config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 1
    return config
