"""Data sets of videos: `load` one by its name and get batches for training and evaluation."""

import difflib
from types import ModuleType

import ml_collections

from data import kinetics_csv, moving_digits, recorded, video_folder
from data.pipeline import Source

_DATA_SETS: dict[str, ModuleType | recorded.RecordedDataSet] = {
    "cater": recorded.CATER,
    "hmdb51": recorded.HMDB51,
    "kinetics_csv": kinetics_csv,
    "moving_digits": moving_digits,
    "ucf101": recorded.UCF101,
    "video_folder": video_folder,
}


def default_config(name: str) -> ml_collections.ConfigDict:
    """The fields of `config.data` for the data set `name`, with their defaults.

    Raises:
      ValueError: if there is no such data set; the message names the closest one.
    """
    return _data_set(name).default_config()


def load(
    config: ml_collections.ConfigDict,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Source:
    """Loads the data set that `config` describes.

    Args:
      config: `default_config(name)`, with other values where wanted.
      seed: decides the order of the videos, the clips and their augmentation.
      process_index: which of the processes this is, from 0.
      process_count: how many processes train together; each gets its part of every batch.

    Returns:
      A `Source` of training and test batches. With `config.num_workers > 0` its training batches
      are made in processes that import the program anew: start it from under
      `if __name__ == "__main__":`. With 0 workers nothing is needed, and the batches are the same.

    Raises:
      ValueError: if there is no such data set or field (the message names the closest one), or a
        value is out of range.
    """
    data_set = _data_set(config.name)
    known = data_set.default_config()
    for field in config:
        if field not in known:
            raise ValueError(f"{config.name} has no field {field!r}{_closest(field, known)}")
    if missing := [field for field in known if field not in config]:
        raise ValueError(
            f"the configuration of {config.name} lacks {', '.join(missing)}; start from "
            f"data.default_config({config.name!r})"
        )
    return data_set.load(
        config, seed=seed, process_index=process_index, process_count=process_count
    )


def _data_set(name: str) -> ModuleType | recorded.RecordedDataSet:
    if name not in _DATA_SETS:
        raise ValueError(f"there is no data set {name!r}{_closest(name, _DATA_SETS)}")
    return _DATA_SETS[name]


def _closest(name: str, names: object) -> str:
    names = sorted(names)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; it can be {', '.join(names)}"
