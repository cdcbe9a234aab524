import pathlib
import re
import subprocess
import sys

import pytest

import data
from data.sets import CLIPS, STREAMS
from tests.data import videos

ROOT = pathlib.Path(__file__).parents[2]


def imports(folder):
    """(file, what it imports), of every import in the files of a folder, those in functions too."""
    for file in (ROOT / folder).rglob("*.py"):
        for line in re.findall(r"^ *((?:from|import) [\w.]+)", file.read_text(), re.MULTILINE):
            yield file.relative_to(ROOT).as_posix(), line.split()[1]


def test_experiments_take_data_through_its_door():
    found = [(file, name) for file, name in imports("experiments") if re.match(r"data\b", name)]
    assert len(found) > 10
    assert [(file, name) for file, name in found if name != "data"] == []


def test_data_needs_nothing_of_the_rest():
    found = list(imports("data"))
    assert len(found) > 100
    rest = ("jax", "flax", "optax", "orbax", "sideways_jax", "experiments", "tests")
    assert [(file, name) for file, name in found if name.split(".")[0] in rest] == []


def test_what_the_door_shows_is_there():
    assert [name for name in data.__all__ if not hasattr(data, name)] == []


def test_the_data_sets_there_are():
    clips = {"cater", "hmdb51", "kinetics_csv", "moving_digits", "ucf101", "video_folder"}
    assert clips <= set(CLIPS)
    assert {"moving_solids", "video_file"} <= set(STREAMS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ufc101", "no data set 'ufc101'; did you mean 'ucf101'"),
        ("zzz", "it can be cater, hmdb51, ucf101"),
        ("video_folder", "made of clips with labels: it is for data.load"),
    ],
)
def test_only_some_data_sets_are_built(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.build(name, tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["moving_digits", "video_folder"])
def test_default_config(name):
    config = data.default_config(name)
    assert config.name == name
    common = {"num_frames", "size", "stride", "batch_size", "num_workers", "flip"}
    assert common <= set(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moving_digit", "no data set 'moving_digit'; did you mean 'moving_digits'"),
        ("folder", "did you mean 'video_folder'"),
        ("zzz", f"it can be {', '.join(sorted(CLIPS))}$"),
        ("moving_solids", "it is for data.load_streams"),
    ],
)
def test_an_unknown_name(name, message):
    config = data.default_config("moving_digits")
    config.name = name
    with pytest.raises(ValueError, match=message):
        data.load(config, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moving_solid", "did you mean 'moving_solids'"),
        ("zzz", f"it can be {', '.join(sorted(STREAMS))}$"),
        ("video_folder", "made of clips with labels: it is for data.load"),
    ],
)
def test_an_unknown_name_of_streams(name, message):
    config = data.default_config("moving_solids")
    config.name = name
    with pytest.raises(ValueError, match=message):
        data.load_streams(config, seed=0)


def test_default_config_of_an_unknown_name():
    message = f"it can be {', '.join(sorted(CLIPS | STREAMS))}$"
    with pytest.raises(ValueError, match=message):
        data.default_config("zzz")


@pytest.mark.parametrize("name", ["moving_solids", "video_file"])
def test_default_config_of_streams(name):
    config = data.default_config(name)
    assert config.name == name
    assert {"size", "stride", "batch_size"} <= set(config)
    config.sise = 3
    with pytest.raises(ValueError, match="no field 'sise'; did you mean 'size'"):
        data.load_streams(config, seed=0)


def test_an_unknown_field():
    config = data.default_config("moving_digits")
    config.num_tests = 5
    with pytest.raises(ValueError, match="no field 'num_tests'; did you mean 'num_test'"):
        data.load(config, seed=0)


def test_a_missing_field():
    config = data.default_config("moving_digits")
    del config.speed
    with pytest.raises(ValueError, match="moving_digits lacks speed"):
        data.load(config, seed=0)


def test_no_jax_in_what_workers_run(tmp_path):
    """Batches are made, decoding included, where JAX cannot be imported, with nothing set up."""
    videos.write_video(tmp_path / "videos" / "a" / "1.avi", 9)
    videos.write_video(tmp_path / "videos" / "b" / "2.avi", 9)
    program = f"""
import sys
sys.modules["jax"] = None
import data
for name in ("moving_digits", "video_folder"):
    config = data.default_config(name)
    if name == "video_folder":
        config.path, config.cache_dir = {str(tmp_path / "videos")!r}, {str(tmp_path)!r}
    config.size = config.num_frames = 32
    config.batch_size = 2
    source = data.load(config, seed=0)
    stream = iter(source.train)
    print(next(stream)["frames"].shape, next(source.test())["frames"].shape)
    stream.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:2] == ["(2, 32, 32, 32, 3) (2, 32, 32, 32, 3)"] * 2, done.stderr
