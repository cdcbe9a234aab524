"""What the workers share: their flags, which the rig sets, and how they find their devices."""

from __future__ import annotations

from typing import NamedTuple

import jax
from absl import flags
from jax.experimental import multihost_utils

from experiments.processes import distributed

_MODEL = flags.DEFINE_string("model", "simple_cnn", "the network")
_BATCH = flags.DEFINE_integer("batch", 8, "clips")
_FRAMES = flags.DEFINE_integer("frames", 64, "K")
_SIZE = flags.DEFINE_integer("size", 32, "height and width of the frames")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the activations")
_FORCED = flags.DEFINE_integer("forced", 0, "devices of one process instead of several processes")


class Settings(NamedTuple):
    """What a worker measures."""

    model: str
    batch: int  # B
    frames: int  # K
    size: int  # height and width of the frames, pixels
    dtype: str  # of the activations
    forced: int  # devices of one process; 0: one device for each of several processes


def given() -> Settings:
    """The settings of the flags; called by `main`."""
    return Settings(
        model=_MODEL.value,
        batch=_BATCH.value,
        frames=_FRAMES.value,
        size=_SIZE.value,
        dtype=_DTYPE.value,
        forced=_FORCED.value,
    )


def find_devices(forced: int, cluster: distributed.Cluster | None) -> None:
    """Finds the devices: `forced` devices of this process, or those of all processes."""
    if forced:
        jax.config.update("jax_num_cpu_devices", forced)
    elif cluster is not None:
        distributed.initialize(cluster)
        # The first message needs all processes within half a minute; compilation may take longer.
        multihost_utils.sync_global_devices("start")
