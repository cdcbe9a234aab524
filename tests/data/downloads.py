"""Downloads of UCF101, HMDB51 and CATER as they come, of a few numbered videos."""

import functools
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping

from tests.data import videos

FRAMES = 20  # of the shortest video; every one has another number of frames


@functools.cache
def contents(codec: str, num_frames: int) -> bytes:
    """An AVI of numbered frames: MPEG-4 with B-frames, or MJPEG."""
    with tempfile.TemporaryDirectory() as folder:
        settings = videos.CODECS[codec]
        return videos.write_video(
            pathlib.Path(folder) / "video.avi", num_frames, **settings
        ).read_bytes()


def write(folder: pathlib.Path, files: Mapping[str, bytes | str]) -> pathlib.Path:
    """Writes files below `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_zip(path: pathlib.Path, files: Mapping[str, bytes | str]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# Keys of the videos of UCF101 and how many frames they have.
UCF101 = {
    "ApplyLipstick/v_ApplyLipstick_g01_c01.avi": 20,
    "ApplyLipstick/v_ApplyLipstick_g02_c01.avi": 21,
    "HandstandPushups/v_HandStandPushups_g01_c01.avi": 22,
    "HandstandPushups/v_HandStandPushups_g02_c01.avi": 23,
    "YoYo/v_YoYo_g01_c01.avi": 24,
    "YoYo/v_YoYo_g02_c01.avi": 25,
}
UCF101_CLASSES = ("ApplyLipstick", "HandstandPushups", "YoYo")


def ucf101_lists(names=tuple(UCF101), classes=UCF101_CLASSES) -> dict[str, str]:
    """Split 1 tests group 1 and split 2 group 2; lists say HandstandPushups in file names, too."""
    lists = {"classInd.txt": "".join(f"{n} {name}\r\n" for n, name in enumerate(classes, 1))}
    for number in (1, 2):
        test = [name for name in names if f"_g0{number}_" in name]
        train = [name for name in names if name not in test]
        of = {name: classes.index(name.partition("/")[0]) + 1 for name in train}
        lists[f"trainlist0{number}.txt"] = "".join(f"{name} {of[name]}\r\n" for name in train)
        lists[f"testlist0{number}.txt"] = "".join(f"{name}\r\n" for name in test)
    return {f"ucfTrainTestlist/{name}": text for name, text in lists.items()}


def ucf101(folder: pathlib.Path) -> pathlib.Path:
    """UCF101 in folders."""
    files = {f"UCF-101/{name}": contents("mpeg4.avi", n) for name, n in UCF101.items()}
    return write(folder, files | ucf101_lists())


# The videos of HMDB51, how many frames they have, and their tags in splits 1 and 2. A name is there
# in two classes.
HMDB51 = {
    "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0": (20, "1", "2"),
    "brush_hair/Brush_my_Hair!(_&_blow)_brush_hair_u_nm_np1_fr_goo_1": (21, "1", "1"),
    "brush_hair/the_same_name;_h_nm_np1_ba_goo_2": (22, "2", "0"),
    "wave/the_same_name;_h_nm_np1_ba_goo_2": (23, "1", "1"),
    "wave/#122_A_[wave]_+_'em=a@b,c_wave_u_cm_np1_ba_med_0": (24, "2", "2"),
    "wave/never_used_wave_u_cm_np1_ba_med_3": (25, "0", "0"),
    "wave/21_&_12_wave_u_cm_np1_ba_med_4": (26, "0", "1"),
}


def hmdb51_videos() -> dict[str, dict[str, bytes]]:
    classes: dict[str, dict[str, bytes]] = {}
    for key, (num_frames, *_) in HMDB51.items():
        of_class = classes.setdefault(key.partition("/")[0], {})
        of_class[f"{key}.avi"] = contents("mpeg4.avi", num_frames)
    return classes


def hmdb51_lists() -> dict[str, str]:
    lists: dict[str, str] = {}
    for key, (_, *tags) in HMDB51.items():
        name, _, file = key.partition("/")
        for number, tag in enumerate(tags, 1):
            path = f"testTrainMulti_7030_splits/{name}_test_split{number}.txt"
            lists[path] = lists.get(path, "") + f"{file}.avi {tag} \n"
    return lists


def hmdb51(folder: pathlib.Path) -> pathlib.Path:
    """HMDB51 in folders."""
    files = {
        f"hmdb51_org/{name}": content
        for of_class in hmdb51_videos().values()
        for name, content in of_class.items()
    }
    return write(folder, files | hmdb51_lists())


CATER = {"CATER_new_000001": 20, "CATER_new_000012": 21, "CATER_new_005748": 22}
CATER_LISTS = {
    "lists/actions_present/train.txt": "CATER_new_005748.avi 0,3,13\nCATER_new_000001.avi 2\n",
    "lists/actions_present/val.txt": "CATER_new_000012.avi 5,6\n",
    "lists/localize/train.txt": "CATER_new_000001.avi 35\nCATER_new_005748.avi 0\n",
    "lists/localize/val.txt": "CATER_new_000012.avi 7\n",
}


def cater_videos() -> dict[str, bytes]:
    return {f"videos/{name}.avi": contents("mjpeg.avi", n) for name, n in CATER.items()}


def cater(folder: pathlib.Path, subset: str = "all_actions") -> pathlib.Path:
    """CATER in zip archives, one set of videos."""
    write_zip(folder / subset / "videos.zip", cater_videos())
    write_zip(folder / subset / "lists.zip", CATER_LISTS)
    return folder
