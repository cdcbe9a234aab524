"""What the TFDS builders of UCF101, HMDB51 and CATER share.

A build stores every listed video once: a record of ArrayRecord has the name of the video and its
frames, each a JPEG, so that a clip costs no more than decoding its own frames. TFDS's splits
`train` and `test` are those of the first official split, and `rest` has what is in neither; how
other splits divide the same videos is in the metadata, together with the labels, sizes and lengths
of all videos, so that no record has to be read to know them.

A build is there completely or not at all: TFDS writes next to its place and renames at the end.
What a killed build left behind is removed by the next.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import rich.console
import rich.progress
import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_data_source
from tensorflow_datasets.core import example_serializer

from data.building import ingest, listing, shards
from data.building.stored import FORMAT

_SPARE = 64 * 2**20  # bytes that stay free on the disk


class BadVideosError(ValueError):
    """Listed videos that are missing or damaged."""


@dataclasses.dataclass
class VideoConfig(tfds.core.BuilderConfig):
    """How a data set is stored.

    Attributes:
      resize: pixels of the shorter side; 0 keeps the size.
      quality: of the JPEGs, 1 to 100.
      exclude_bad: record listed videos that are missing or damaged as excluded, and go on; without
        it they are an error.
      num_processes: that decode; 0 takes one for every core.
    """

    resize: int = 128
    quality: int = 90
    exclude_bad: bool = False
    num_processes: int = 0


class VideoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder. A subclass only says which videos there are (`_listing`)."""

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = ""
    SINGLE_LABEL = True  # whether a video has one class, the same in every split

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    def _listing(self, folder: str, scratch: str) -> listing.Listing:
        """The videos below `folder` and the official lists; archives are unpacked to `scratch`."""
        raise NotImplementedError

    def _published(self) -> dict[str, int]:
        """How many "videos" there are, and "SPLIT train" and "SPLIT test", as far as published."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "name": tfds.features.Text(),
            "frames": tfds.features.Sequence(tfds.features.Scalar(np.object_)),
        }
        if self.SINGLE_LABEL:
            features["label"] = tfds.features.ClassLabel()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the metadata has the videos in the order of the records
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        if self.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"file_format is {self.info.file_format.value}; only array_record can be read "
                "in any order"
            )
        final = os.path.dirname(os.fspath(self.data_dir).rstrip("/"))
        with _only_build(final, os.fspath(self.data_dir)), _no_bars_of_tfds():
            scratch = os.path.join(self.data_dir, "scratch")
            os.makedirs(scratch)
            self._bad: dict[str, str] = {}
            self._stored: dict[str, list] = {}
            with contextlib.ExitStack() as stack:
                stack.callback(shutil.rmtree, scratch)
                self._progress = stack.enter_context(_progress())
                super()._download_and_prepare(dl_manager, download_config)
            self._check_written()
            self._describe()

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        folder = os.fspath(dl_manager.manual_dir)
        self._listing_of_all = found = self._listing(folder, os.path.join(self.data_dir, "scratch"))
        if self.SINGLE_LABEL:
            self.info.features["label"].names = _first(found).classes
        listed = found.listed
        self._note_deviations(found)
        missing = [key for key in listed if key not in found.files]
        if missing:
            self._bad |= dict.fromkeys(missing, "missing")
            if not self.builder_config.exclude_bad:
                raise self._error()
        first = _first(found)
        order = {
            "train": [key for key in first.train if key in found.files],
            "test": [key for key in first.test if key in found.files],
        }
        order["rest"] = [
            key
            for key in listed
            if key in found.files and key not in first.train and key not in first.test
        ]
        self._order = {name: keys for name, keys in order.items() if keys or name != "rest"}
        self._task = self._progress.add_task("", total=sum(map(len, order.values())), bad="")
        return {name: self._generate_examples(name) for name in self._order}

    def _generate_examples(self, part: str) -> Iterator[tuple[int, dict]]:
        keys = self._order[part]
        stored = self._stored[part] = []
        exclude = self.builder_config.exclude_bad
        for index, (key, video) in enumerate(self._encoded(keys)):
            if isinstance(video, ingest.Bad):
                self._bad[key] = video.reason
            elif exclude or not self._bad:
                _check_space(self.data_dir, sum(map(len, video.jpegs)))
                stored.append([key, len(video.jpegs), video.height, video.width])
                yield index, self._example(key, video)
        if self._bad and not exclude:
            # The build has failed; what remains is only looked at, to name all that is bad at once.
            parts = list(self._order)
            for later in parts[parts.index(part) + 1 :]:
                for key, video in self._encoded(self._order[later]):
                    if isinstance(video, ingest.Bad):
                        self._bad[key] = video.reason
            raise self._error()
        if not stored:
            raise self._error(f"no video of {part} can be used: ")

    def _generate_splits(self, dl_manager, download_config) -> list[tfds.core.SplitInfo]:
        """As TFDS does it, but records are written as they come (`shards.write`), not sorted."""
        if download_config.max_examples_per_split is not None:
            raise ValueError("max_examples_per_split is not supported: all videos or none")
        features, infos = self.info.features, []
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        for name, examples in self._split_generators(dl_manager).items():
            template = self._get_filename_template(split_name=name)
            written = shards.write(
                (
                    serializer.serialize_example(features.encode_example(example))
                    for _, example in examples
                ),
                lambda index, count, template=template: os.fspath(
                    template.sharded_filepath(shard_index=index, num_shards=count)
                ),
            )
            infos.append(
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=written.lengths,
                    num_bytes=written.num_bytes,
                    filename_template=template,
                )
            )
        return infos

    def _encoded(self, keys: list[str]) -> Iterator[tuple[str, ingest.Frames | ingest.Bad]]:
        config, files = self.builder_config, self._listing_of_all.files
        videos = ingest.encode_all(
            [files[key] for key in keys], config.resize, config.quality, config.num_processes
        )
        for key, video in zip(keys, videos, strict=True):
            self._progress.advance(self._task)
            yield key, video
            if isinstance(video, ingest.Bad):
                self._progress.update(self._task, bad=f"{len(self._bad)} bad")

    def _example(self, key: str, video: ingest.Frames) -> dict:
        example = {"name": key, "frames": video.jpegs}
        if self.SINGLE_LABEL:
            [example["label"]] = self._listing_of_all.listed[key]
        return example

    def _describe(self) -> None:
        """Fills the metadata in."""
        stored = [video for part in self._order for video in self._stored[part]]
        index = {key: number for number, (key, *_) in enumerate(stored)}
        self.info.metadata.update(
            {
                "format": FORMAT,
                "resize": self.builder_config.resize,
                # In the order of the records of train, test and rest: key, frames, height, width.
                "videos": {part: self._stored[part] for part in self._order},
                # Videos by their number in all of "videos", with their labels.
                "splits": {
                    name: {
                        "classes": list(split.classes),
                        **{
                            part: [
                                [index[key], list(labels)]
                                for key, labels in getattr(split, part).items()
                                if key in index
                            ]
                            for part in listing.PARTS
                        },
                    }
                    for name, split in self._listing_of_all.splits.items()
                },
                "excluded": dict(sorted(self._bad.items())),
                "unlisted": self._unlisted,
            }
        )
        if self._bad:
            logging.warning("%s", self._error("excluded: "))

    def _error(self, prefix: str = "") -> BadVideosError:
        names = "\n".join(f"  {key}: {reason}" for key, reason in sorted(self._bad.items()))
        config, advice = self.builder_config, ""
        if not config.exclude_bad:
            other = {"name": f"{config.name}_excluding", "exclude_bad": True} | {
                field.name: getattr(config, field.name)
                for field in dataclasses.fields(config)
                if field.name in ("resize", "quality", "subset")
                and getattr(config, field.name) != field.default
            }
            advice = f"\nGet them again, or build without them: --config='{json.dumps(other)}'"
        return BadVideosError(
            f"{prefix}{len(self._bad)} of {len(self._listing_of_all.listed)} listed videos are "
            "missing or damaged:\n"
            f"{names}{advice}"
        )

    def _note_deviations(self, found: listing.Listing) -> None:
        """Says what is there and not listed, and where the lists are not the published ones."""
        self._unlisted = sorted(set(found.files) - set(found.listed))
        if self._unlisted:
            logging.warning(
                "%d videos are in no list and are left out: %s",
                len(self._unlisted),
                ", ".join(self._unlisted),
            )
        counts = {"videos": len(found.listed)}
        for name, split in found.splits.items():
            counts |= {f"{name} train": len(split.train), f"{name} test": len(split.test)}
        other = {
            name: (counts[name], published)
            for name, published in self._published().items()
            if name in counts and counts[name] != published
        }
        if other:
            logging.warning(
                "These are not the published lists of %s: %s",
                self.name,
                ", ".join(f"{name}: {here}, not {there}" for name, (here, there) in other.items()),
            )

    def _check_written(self) -> None:
        """Opens what was written: a writer that ran out of space does not always say so."""
        for part, split in self.info.splits.items():
            paths = [os.fspath(path) for path in split.filepaths]
            try:
                written = len(array_record_data_source.ArrayRecordDataSource(paths))
            except (RuntimeError, ValueError, OSError) as error:
                raise OSError(
                    errno.EIO, f"what was written for {part} cannot be read ({error}); is the disk "
                    f"full? {_free(self.data_dir) >> 20} MiB are free"
                ) from error  # fmt: skip
            if written != len(self._stored[part]):
                raise OSError(
                    errno.EIO,
                    f"{written} of {len(self._stored[part])} videos of {part} were written",
                )


def build(
    builder_class: type[VideoBuilder],
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    **config: Any,
) -> VideoBuilder:
    """`data.build` with the class of the builder instead of the name of the data set.

    Raises:
      BadVideosError: if listed videos are missing or damaged, unless `exclude_bad` is set.
      ListError: if the official lists are missing or make no sense.
      OSError: without enough disk space.
    """
    name = config.pop("name", None)
    chosen = name
    if config:
        default = builder_class.BUILDER_CONFIGS[0]
        chosen = dataclasses.replace(default, name=name or f"{default.name}_custom", **config)
    builder = builder_class(data_dir=os.fspath(data_dir) if data_dir else None, config=chosen)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=os.fspath(manual_dir))
    )
    return builder


def _first(found: listing.Listing) -> listing.Split:
    return next(iter(found.splits.values()))


@contextlib.contextmanager
def _only_build(folder: str, mine: str) -> Iterator[None]:
    """Holds the folder against other builds, and removes what killed ones left in it."""
    with open(os.path.join(folder, ".build.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is building {folder}; wait for it to end") from None
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name.startswith("incomplete.") and not os.path.samefile(path, mine):
                logging.warning("Removing what a build that was killed left: %s", path)
                shutil.rmtree(path)
        yield


@contextlib.contextmanager
def _no_bars_of_tfds() -> Iterator[None]:
    """TFDS shows a bar for every split, which says neither how many there are nor what is bad."""
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()


def _progress() -> rich.progress.Progress:
    # Standard error, so that the output of a program stays its own.
    return rich.progress.Progress(
        rich.progress.TextColumn("decoding videos"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[bad]}"),
        console=rich.console.Console(stderr=True),
        transient=True,
    )


def _free(folder: str | os.PathLike) -> int:
    return shutil.disk_usage(folder).free


def _check_space(folder: str | os.PathLike, wanted: int) -> None:
    free = _free(folder)
    if free < wanted + _SPARE:
        raise OSError(
            errno.ENOSPC,
            f"no space left for the data set: {free >> 20} MiB are free where it is built; free "
            "some, or give another --data_dir",
            os.fspath(folder),
        )
