"""CATER: where does the snitch end? Synthetic videos, classified.

python experiments/build_data.py cater --config=max2action --manual_dir=DOWNLOADS --data_dir=DATA
python experiments/main.py --config=experiments/configs/cater.py --workdir=/tmp/cater \
    --config.data.path=DATA

The paper uses CATER for auto-encoding alone, with the frames of `all_actions`: 3861 videos to train
on, 1639 to test, crops of 240x240 pixels. For that, take `data.default_config("cater")` as it is:
`labels` is False there. The paper has no accuracy for this task, and **none has been measured
here**.

The label is the cell of a grid of 6x6 where one of the objects ends, the task `localize` of
`max2action`. The tasks of `all_actions`, `subset=all_actions,task=actions_present` (or
actions_order_uniq), give a video several labels: the loss is a sigmoid's cross-entropy for each
class, the score the mean average precision.

Clips of 64 frames, 240x240 pixels out of frames with a shorter side of 240, batches of 8, Adam. It
is made for a GPU. Clips are not flipped, since a flip would change the label.

Arguments, after a colon: `subset=max2action_cameramotion`, `task=localize`, `model=vgg8`
(docs/networks.md), `rule=backprop`, `stride=2` (1 to 6), `dropout=0.9`, `learning_rate=1e-5`,
`weight_decay=1e-3`, `execution=scan`, `schedule=...`, `depth=...`; `smoke` for an epoch on six tiny
videos, which are packed and built as CATER is.
"""

from ml_collections import ConfigDict

from experiments.configs._recognition import recognition


def get_config(arguments: str = "") -> ConfigDict:
    """The config, for arguments such as `"subset=max2action_cameramotion,rule=backprop"`."""
    config, given = recognition(
        arguments,
        "cater",
        num_train=3850,  # 70% of 5500
        variant="smoke_max2action",
        subset="max2action",
        task="localize",
    )
    if not given.smoke:
        config.data.variant = given.subset
    elif given.subset.startswith("all_actions"):
        config.data.variant = "smoke"
    config.data.split = given.task
    config.data.labels = True
    config.data.multi_label = given.task != "localize"
    config.data.flip = False
    return config
