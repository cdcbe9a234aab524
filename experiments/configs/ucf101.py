"""UCF101: 101 actions, the protocol of section 4 of the Sideways paper.

python experiments/build_data.py ucf101 --manual_dir=DOWNLOADS --data_dir=DATA
python experiments/main.py --config=experiments/configs/ucf101.py --workdir=/tmp/ucf101 \
    --config.data.path=DATA

Test accuracy in Table 1 of the paper, in % (split 1 for HMDB51; for UCF101 the paper names none):

                            backprop    Sideways
    Simple-CNN                  40.7        42.16
    VGG-8                       49.1        53.8
    VGG-8, dropout 0.9          56.0        58.2

**They have not been reproduced here**: the machines this was written on have no UCF101. The paper
searched over learning rates of 1e-4 and 1e-5 and weight decays of 0, 1e-4, 1e-3 and 1e-2, and does
not say which gave these numbers, nor for how long it trained; 250 epochs here.

Clips of 64 frames, 112x112 pixels out of frames with a shorter side of 128, batches of 8, Adam. It
is made for a GPU.

Arguments, after a colon: `model=vgg8` (docs/networks.md), `rule=backprop`, `split=2` (1 to 3),
`stride=2` (1 to 6), `dropout=0.9` (VGG-8), `learning_rate=1e-5`, `weight_decay=1e-3`,
`execution=scan`, `schedule=...`, `depth=...`; `smoke` for an epoch on six tiny videos, which are
packed and built as UCF101 is.
"""

from ml_collections import ConfigDict

from experiments.configs._recognition import recognition


def get_config(arguments: str = "") -> ConfigDict:
    """The config, for arguments such as `"model=vgg8,dropout=0.9,split=2"`."""
    config, given = recognition(arguments, "ucf101", num_train=9537, split="1")
    config.data.split = given.split
    return config
