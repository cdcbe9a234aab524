"""What `live.py` is made of: sources that end too soon, addresses, and its flags."""

import subprocess
import sys

import av
import pytest
from rich.console import Console

from experiments.jobs.autoencoding import painting
from tests.data import server, videos
from tests.experiments import tiny

SETTINGS = painting.Settings(
    source="", out=None, rule="sideways", frames=0, repeat=False, size=16, optimizer="sgd",
    learning_rate=None, stride=1, fps=24, seed=0,
)  # fmt: skip


def watch(tmp_path, **settings):
    settings = SETTINGS._replace(**{"out": tmp_path / "out.avi", **settings})
    return painting.watch(settings, Console(quiet=True))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.gif"])
@pytest.mark.parametrize("repeat", [False, True])
def test_a_file_of_one_frame_fails_at_the_start(tmp_path, name, repeat):
    codec = {"a.mp4": "libx264", "a.avi": "mpeg4", "a.gif": "gif"}[name]
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    file = videos.write_video(tmp_path / name, 1, codec=codec, pix_fmt=pix_fmt)
    said = f"{name} has 1 frame, and the first output comes with frame 6: give a longer video"
    with pytest.raises(ValueError, match=said):
        watch(tmp_path, source=str(file), repeat=repeat)
    assert not (tmp_path / "out.avi").exists()


def test_a_stride_that_leaves_one_frame_fails_at_the_start(tmp_path):
    file = videos.write_video(tmp_path / "a.avi", 10)
    with pytest.raises(ValueError, match=r"a\.avi has 1 frame at --stride=300, .* set it to less"):
        watch(tmp_path, source=str(file), stride=300)
    with pytest.raises(ValueError, match=r"a\.avi has 5 frames at --stride=2, "):
        watch(tmp_path, source=str(file), stride=2, repeat=True)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.full)])
def test_an_address(tmp_path, optimizer):
    """A camera whose connection ends after 9 frames: what it painted is kept."""
    said = r"read after 9 frames: .* 9 frames so far: "
    with (
        server.serving({"/camera": server.camera(9)}) as address,
        pytest.raises(painting.BadVideo, match=said),
    ):
        watch(tmp_path, source=f"{address}/camera", optimizer=optimizer)
    with av.open(str(tmp_path / "out.avi")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    before, after = frames[4][:, 16:].mean(), frames[8][:, 16:].mean()
    assert before < 2 and after > 4  # the first output comes with the sixth frame


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_an_address_that_ends_too_soon(tmp_path):
    file = videos.write_video(tmp_path / "a.mkv", 2)
    said = r"/a\.mkv has 2 frames, and the first output comes"
    with (
        server.serving({"/a.mkv": server.file(file)}) as address,
        pytest.raises(ValueError, match=said),
    ):
        watch(tmp_path, source=f"{address}/a.mkv")


def test_gradient_descent_without_normalisation_is_the_default():
    """As docs/online.md has found."""
    assert painting.OPTIMIZERS["sgd"] == (0.3, False)
    assert painting._learning_rate(SETTINGS) == 0.3
    assert painting._learning_rate(SETTINGS._replace(optimizer="adam")) == 1e-3
    assert painting._learning_rate(SETTINGS._replace(learning_rate=0.1)) == 0.1


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--frames=-1", "flag --frames=-1: -1 is not a non-negative integer"),
        ("--frames=3", "Error: --frames=3 is too few: the first output comes with frame 6"),
        ("--optimizer=sdg", "flag --optimizer=sdg: value should be one of <sgd|adam>"),
    ],
)
def test_flags(tmp_path, flag, said):
    command = [sys.executable, "experiments/live.py", "--source=x.avi", f"--out={tmp_path}/x.mp4"]
    done = subprocess.run(
        [*command, flag], cwd=tiny.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_says_which_optimizer_is_the_default():
    done = subprocess.run(
        [sys.executable, "experiments/live.py", "--help"],
        cwd=tiny.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    words = " ".join(done.stdout.split())
    assert "--optimizer: <sgd|adam>" in words
    assert "(default: 'sgd')" in words
