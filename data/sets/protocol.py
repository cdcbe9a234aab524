"""What a data set has to give: its defaults, and its videos or what its streams play.

There are two kinds, clips with labels (`ClipSet`) and streams of frames (`StreamSet`). Each has two
functions: a module with these two functions is a data set, and so is an object with these two
methods. What follows is the same for all of them. The door of the package checks the names of the
fields, and makes batches of the clips (`data.load`) or plays the streams (`data.load_streams`).

To add a data set, write one file with the two functions and enter it in the list of data sets.
"""

from typing import Protocol

from ml_collections import ConfigDict

from data.batches.streams import Programme
from data.batches.videos import Splits


class ClipSet(Protocol):
    """A data set of clips with labels."""

    def default_config(self) -> ConfigDict:
        """The fields of `config.data`: those of `clip_config`, and the data set's own."""

    def splits(self, config: ConfigDict, *, seed: int) -> Splits:
        """The classes and the videos that `config` describes.

        Args:
          config: has the fields of `default_config`, and no others.
          seed: for what a data set draws at random, of the test videos above all: which frames a
            training clip takes is drawn elsewhere. A data set of files has no use for it.

        Raises:
          ValueError: if a value of `config` is out of range. The fields of `clip_config` are
            checked elsewhere.
          FileNotFoundError: if the videos are not there.
        """


class StreamSet(Protocol):
    """A data set of streams of frames, without labels."""

    def default_config(self) -> ConfigDict:
        """The fields of `config.data`: `name`, `size`, `stride`, `batch_size`, and its own."""

    def programme(self, config: ConfigDict, *, seed: int, split: str) -> Programme:
        """What the slots of a batch play.

        Args:
          config: has the fields of `default_config`, and no others.
          seed: for all that is drawn at random.
          split: "train", or "test", what is never trained on; a data set may have more.

        Raises:
          ValueError: if a value of `config` is out of range, or there is no such split.
          data.BadVideo: if the source cannot be read.
        """


def clip_config(
    name: str, *, num_frames: int = 64, size: int = 112, flip: bool = True
) -> ConfigDict:
    """The fields that `config.data` has for every data set of clips, a new ConfigDict.

    Args:
      name: of the data set.
      num_frames: the default of this field; that of the Sideways paper if left out, like the rest.
      size: the default of this field.
      flip: the default of this field.

    >>> sorted(clip_config("mine"))
    ['batch_size', 'flip', 'name', 'num_frames', 'num_workers', 'size', 'stride']
    """
    config = ConfigDict()
    config.name = name
    config.num_frames = num_frames  # K, frames of a clip
    config.size = size  # height and width of a clip, pixels: a crop, or all of the frames
    config.stride = 1  # take every stride-th frame
    config.batch_size = 8  # clips of a batch, over all processes
    config.num_workers = 0  # processes that make training batches; 0 makes them in this one
    config.flip = flip  # mirror half of the training clips
    return config
