"""Data sets of videos: `load` one by its name and get batches for training and evaluation.

Clips with labels come from `load`, streams of frames without end or label from `load_streams`, and
files without labels, to be looked at after training, from `load_files`.
UCF101, HMDB51 and CATER have to be built once, from the files that were downloaded, with `build`.

This is the only door: programs import from `data`, and not from the packages inside it. Nothing in
here needs JAX, so worker processes can do without it, and nothing in here imports `sideways_jax`.
"""

import difflib
import importlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import ml_collections

from data.batches.labels import classes_of
from data.batches.loose import NO_VIDEOS, Files, load_files, video_files
from data.batches.source import Source, check_options, make_source
from data.batches.streams import Piece, Programme, Streams
from data.batches.videos import ClipOptions, Splits, Videos
from data.own import imported
from data.sets import CLIPS, STREAMS, recorded
from data.video.boxes import Box
from data.video.decoding import BadVideo, decode
from data.video.live import is_live

if TYPE_CHECKING:
    from data.building.builder import VideoBuilder

__all__ = [
    "NO_VIDEOS",
    "BadVideo",
    "Box",
    "ClipOptions",
    "Files",
    "Piece",
    "Programme",
    "Source",
    "Splits",
    "Streams",
    "Videos",
    "build",
    "classes_of",
    "decode",
    "default_config",
    "imported",
    "is_live",
    "load",
    "load_files",
    "load_streams",
    "make_source",
    "video_files",
]

DataSet = TypeVar("DataSet")


def default_config(name: str) -> ml_collections.ConfigDict:
    """The fields of `config.data` for the data set `name`, with their defaults.

    Args:
      name: one of those there are, or "MODULE:NAME" for one of your own (docs/own.md).

    Raises:
      ValueError: if there is no such data set; the message names the closest one.
    """
    config = _data_set(name, CLIPS | STREAMS).default_config()
    config.name = name
    return config


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
      FileNotFoundError: if the videos are not there.
    """
    data_set = _checked(config, CLIPS)
    options = ClipOptions.of(config)
    run = {"seed": seed, "process_index": process_index, "process_count": process_count}
    check_options(options, **run)  # before a data set decodes thousands of files
    return make_source(data_set.splits(config, seed=seed), options, **run)


def load_streams(config: ml_collections.ConfigDict, *, seed: int, split: str = "train") -> Streams:
    """Loads the streams of frames that `config` describes.

    Args:
      config: `default_config(name)`, with other values where wanted.
      seed: decides all that is drawn at random.
      split: "train"; "test", what is never trained on, played once; `video_file` also has "all".

    Returns:
      An iterator over batches, one frame of each stream a step. Close it in the end.

    Raises:
      ValueError: if there is no such data set or field (the message names the closest one), no such
        split, or a value is out of range.
      BadVideo: if a file, a camera or a pipe cannot be read.
    """
    return Streams(_checked(config, STREAMS).programme(config, seed=seed, split=split))


def build(
    data_set: str,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    **config: Any,
) -> "VideoBuilder":
    """Builds UCF101, HMDB51 or CATER, for `load` to read; what is there already stays as it is.

    `experiments/build_data.py` does the same from a shell. Here TFDS is imported, which takes
    seconds and is needed for nothing else.

    Args:
      data_set: "ucf101", "hmdb51" or "cater".
      manual_dir: where the downloaded files are.
      data_dir: where data sets are kept; None takes TFDS's `~/tensorflow_datasets`.
      **config: `name` takes one of the configurations there are; with other fields of the builder's
        configuration, such as `resize` or `exclude_bad`, it names a new one.

    Returns:
      The builder of TFDS, after its work.

    Raises:
      ValueError: if there is no such data set to build; if listed videos are missing or damaged
        and `exclude_bad` is not set; if the official lists are missing or make no sense.
      OSError: without enough disk space.
    """
    built = {name: one for name, one in CLIPS.items() if isinstance(one, recorded.RecordedDataSet)}
    name = _data_set(data_set, built).name
    from data.building import builder

    module = importlib.import_module(f"data.building.{name}.{name}_dataset_builder")
    return builder.build(module.Builder, manual_dir, data_dir, **config)


def _checked(config: ml_collections.ConfigDict, data_sets: Mapping[str, DataSet]) -> DataSet:
    """The data set of `config`, which must be one of `data_sets` and have all its fields."""
    data_set = _data_set(config.name, data_sets)
    known = data_set.default_config()
    for field in config:
        if field not in known:
            raise ValueError(f"{config.name} has no field {field!r}{_closest(field, known)}")
    if missing := [field for field in known if field not in config]:
        raise ValueError(
            f"the configuration of {config.name} lacks {', '.join(missing)}; start from "
            f"data.default_config({config.name!r})"
        )
    return data_set


def _data_set(name: str, data_sets: Mapping[str, DataSet]) -> DataSet:
    """The one of `data_sets` with this name.

    Raises:
      ValueError: if there is none; the message names the closest, or the function to call instead.
    """
    if name in data_sets:
        return data_sets[name]
    if ":" in name:
        functions = {id(CLIPS): ["splits"], id(STREAMS): ["programme"]}
        return _own(name, ["default_config", *functions.get(id(data_sets), [])])
    for others, loader in ((CLIPS, "load"), (STREAMS, "load_streams")):
        if name in others:
            kind = "clips with labels" if others is CLIPS else "streams of frames"
            raise ValueError(f"{name} is made of {kind}: it is for data.{loader}")
    raise ValueError(f"there is no data set {name!r}{_closest(name, data_sets)}")


def _own(name: str, functions: Iterable[str]) -> Any:
    own = imported(name, "data set")
    if missing := [one for one in functions if not hasattr(own, one)]:
        raise ValueError(
            f"data set {name!r} has no {' and no '.join(missing)}: see data/sets/protocol.py"
        )
    return own


def _closest(name: str, names: Iterable[str]) -> str:
    """What to say behind an unknown name: the closest one, or all there are."""
    names = sorted(names)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; it can be {', '.join(names)}"
