"""Tiny archives in the layout of UCF101, HMDB51 and CATER, for smoke tests of the builders."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

import data
from experiments.examples import stored_rar
from experiments.examples import videos as example_videos

DATA_SETS = ("cater", "hmdb51", "ucf101")
RESIZE = 32  # pixels of the shorter side in the builds


def build(name: str, folder: Path) -> None:
    """Writes archives of the data set `name` into `FOLDER/downloads` and builds it in `FOLDER`.

    Two classes, each with two videos to train on and one to test. The builder's configuration is
    called `smoke`; CATER has `smoke_max2action`, too. An existing build stays.
    """
    write, variants = {
        "cater": (
            _cater,
            {"smoke": {"subset": "all_actions"}, "smoke_max2action": {"subset": "max2action"}},
        ),
        "hmdb51": (_hmdb51, {"smoke": {}}),
        "ucf101": (_ucf101, {"smoke": {}}),
    }[name]
    if all(list((folder / name / variant).glob("[0-9]*")) for variant in variants):
        return
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    write(downloads)
    for variant, fields in variants.items():
        with _quietly():
            data.build(
                name, downloads, folder, name=variant, resize=RESIZE, num_processes=1, **fields
            )


def with_examples(config: ConfigDict, folder: Path) -> ConfigDict:
    """The config, with example videos in `folder` if it asks for them and names no other data."""
    if not config.example_videos or config.data.path:
        return config
    config = config.copy_and_resolve_references()
    config.data.path = os.fspath(folder)
    if config.data.name in DATA_SETS:
        build(config.data.name, folder)
    elif config.data.name == "kinetics_csv":
        config.data.path, config.data.test_path = map(os.fspath, example_videos.write_lists(folder))
    else:
        example_videos.write(folder)
    return config.lock()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hides the output of TFDS, and the warning that this is not the published data set."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _ucf101(downloads: Path) -> None:
    videos = _videos(downloads, "mpeg4", "v_{}_g{:02}_c01.avi", ("HandStandPushups", "Swing"))
    in_class = {
        f"{'HandstandPushups' if 'Hand' in name else 'Swing'}/{name}": video
        for name, video in videos.items()
    }
    _zip(downloads / "UCF101.zip", {f"UCF-101/{path}": v for path, v in in_class.items()})
    numbers = {"HandstandPushups": 1, "Swing": 2}
    lists = {"classInd.txt": "1 HandstandPushups\n2 Swing\n"}
    train = [path for path in in_class if "_g03_" not in path and "_g06_" not in path]
    lists["trainlist01.txt"] = "".join(
        f"{path} {numbers[path.partition('/')[0]]}\n" for path in train
    )
    lists["testlist01.txt"] = "".join(f"{path}\n" for path in in_class if path not in train)
    _zip(
        downloads / "UCF101TrainTestSplits-RecognitionTask.zip",
        {f"ucfTrainTestlist/{file}": text.encode() for file, text in lists.items()},
    )


def _hmdb51(downloads: Path) -> None:
    classes, lists = {}, {}
    for name in ("brush_hair", "wave"):
        videos = _videos(downloads, "mpeg4", "{}_(take){:d}!_&_;_u_cm_np1_ba_med_0.avi", (name,))
        classes[name] = {f"{name}/{file}": video for file, video in videos.items()}
        tags = zip(videos, (1, 1, 2), strict=True)
        lists[f"testTrainMulti_7030_splits/{name}_test_split1.txt"] = "".join(
            f"{file} {tag} \n" for file, tag in tags
        ).encode()
    inner = {}
    for name, files in classes.items():
        stored_rar.write(downloads / "inner.rar", files)
        inner[f"{name}.rar"] = (downloads / "inner.rar").read_bytes()
    (downloads / "inner.rar").unlink()
    stored_rar.write(downloads / "hmdb51_org.rar", inner)
    stored_rar.write(downloads / "test_train_splits.rar", lists)


def _cater(downloads: Path) -> None:
    videos = _videos(downloads, "mjpeg", "CATER_new_{1:06}.avi", ("still", "moving"))
    parts = {"train": (1, 2, 4, 5), "val": (3, 6)}
    for subset, task, labels in (
        ("all_actions", "actions_present", ("0,3", "1,3,8")),
        ("max2action", "localize", ("7", "20")),
    ):
        (downloads / subset).mkdir(exist_ok=True)
        _zip(
            downloads / subset / "videos.zip",
            {f"videos/{name}": video for name, video in videos.items()},
        )
        lists = {
            f"lists/{task}/{part}.txt": "".join(
                f"CATER_new_{number:06}.avi {labels[number > 3]}\n" for number in numbers
            ).encode()
            for part, numbers in parts.items()
        }
        _zip(downloads / subset / "lists.zip", lists)


def _videos(folder: Path, codec: str, name: str, classes: tuple[str, ...]) -> dict[str, bytes]:
    """Three videos of each class, by their file names."""
    videos = {}
    for label, of_class in enumerate(classes):
        for number in (1, 2, 3):
            file = folder / "video.avi"
            velocity = ((1, 0), (0, 1))[label]
            example_videos.write_video(file, 5 * number, velocity, codec)
            videos[name.format(of_class, number + 3 * label)] = file.read_bytes()
            file.unlink()
    return videos


def _zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
