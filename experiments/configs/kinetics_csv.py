"""Your own videos, in a list: a CSV file with a path and a class in each line, as Kinetics has.

python experiments/main.py --config=experiments/configs/kinetics_csv.py --workdir=/tmp/kinetics \
    --config.data.path=TRAIN.csv --config.data.test_path=TEST.csv --config.data.root=VIDEOS

Lines are `path,label`, or `path,label,start,end` for parts of videos, in seconds; Kinetics' own
lists are read as they are (docs/data.md). `data.root` is the folder that paths are relative to, by
default that of each list; without `data.test_path` there are no tests.

Clips of 64 frames, 112x112 pixels, in batches of 8, Adam with a learning rate of 1e-4, as for
HMDB51 and UCF101 in section 4.2 of the paper, which has no result on Kinetics. It is made for a
GPU; for a CPU see configs/video_folder.py.

Arguments, after a colon: `model=vgg8` (docs/networks.md), `rule=backprop`, `execution=scan`;
`smoke`
for two steps, on six tiny videos that it writes and lists in the workdir if no path is given.
"""

from ml_collections import ConfigDict

from data import default_config
from experiments.configs import video_folder


def get_config(arguments: str = "") -> ConfigDict:
    """The config, for arguments such as `"model=vgg8,smoke"`."""
    config = video_folder.get_config(arguments)
    of_folder = config.data
    config.data = default_config("kinetics_csv")
    for name in set(config.data) & set(of_folder) - {"name", "path"}:
        config.data[name] = of_folder[name]
    return config
