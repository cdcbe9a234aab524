"""What a data set has to give: the defaults of its fields, and its videos or its streams.

There are two kinds of data sets, clips with labels (`ClipSet`) and streams of frames (`StreamSet`).
Each has two functions. A module with these two functions is a data set, and so is an object with
these two methods (`recorded.RecordedDataSet`).

What follows is the same for every data set and is done by `data.load` and `data.load_streams`: they
check the names of the fields, and make batches of the clips or play the streams.

To add a data set, write a file beside this one with the two functions, and enter it into the list
in `data/sets/__init__.py`; or leave it where it is, and name it "MODULE:NAME" (docs/own.md).
`moving_digits` is an example of clips, `moving_solids` of streams.
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
          seed: of the run, at least 0, for a data set that draws its videos at random. The order
            of the videos, the frames of a clip, its crop and its flip are drawn elsewhere.

        Raises:
          ValueError: if one of its own fields is out of range. Those of `clip_config` have been
            checked; whether `size` fits the videos is checked afterwards.
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
    """A new configuration, with the fields that `config.data` has for every data set of clips.

    The defaults are those of section 4 of the Sideways paper (Malinowski et al., 2020): clips of 64
    frames of 112x112 pixels, half of them mirrored. A data set that differs gives its own.

    >>> sorted(clip_config("mine"))
    ['batch_size', 'colour', 'flip', 'name', 'num_frames', 'num_workers', 'scale', 'size', 'stride']
    """
    config = ConfigDict()
    config.name = name
    config.num_frames = num_frames  # K, frames of a clip
    config.size = size  # height and width of a clip, pixels: a crop, or all of the frames
    config.stride = 1  # take every stride-th frame
    config.batch_size = 8  # clips of a batch, over all processes
    config.num_workers = 0  # processes that make training batches; 0 makes them in this one
    config.flip = flip  # mirror half of the training clips
    config.scale = (1.0, 1.0)  # training crops are that many times as large, and resized to size
    config.colour = 0.0  # how far brightness, contrast and saturation of a clip change, 0 to 1
    return config
