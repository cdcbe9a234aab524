"""HMDB51: 51 actions, the protocol of section 4 of the Sideways paper.

python experiments/build_data.py hmdb51 --manual_dir=DOWNLOADS --data_dir=DATA
python experiments/main.py --config=experiments/configs/hmdb51.py --workdir=/tmp/hmdb51 \
    --config.data.path=DATA

Test accuracy in Table 1 of the paper, in %, split 1:

                            backprop    Sideways
    Simple-CNN                  17.2        16.5
    VGG-8                       24.6        25.8

**They have not been reproduced here**: the machines this was written on have no HMDB51. The paper
searched over learning rates of 1e-4 and 1e-5 and weight decays of 0, 1e-4, 1e-3 and 1e-2, and does
not say which gave these numbers, nor for how long it trained; 250 epochs here.

Clips of 64 frames, 112x112 pixels out of frames with a shorter side of 128, batches of 8, Adam. It
is made for a GPU.

Arguments, after a colon: `model=vgg8` (docs/networks.md), `rule=backprop`, `split=2` (1 to 3),
`stride=2` (1 to 6), `dropout=0.9` (VGG-8), `learning_rate=1e-5`, `weight_decay=1e-3`,
`execution=scan`, `schedule=...`, `depth=...`; `smoke` for an epoch on six tiny videos, which are
packed and built as HMDB51 is.
"""

from ml_collections import ConfigDict

from experiments.configs._recognition import recognition


def get_config(arguments: str = "") -> ConfigDict:
    """The config, for arguments such as `"model=vgg8,rule=backprop,split=2"`."""
    config, given = recognition(arguments, "hmdb51", num_train=3570, split="1")
    config.data.split = given.split
    return config
