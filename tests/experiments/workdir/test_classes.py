"""The names of the classes that a workdir keeps, when the videos of its run change."""

import json
import shutil

import pytest
from rich.console import Console

from experiments import trained
from experiments.configs import video_folder
from experiments.examples import videos
from experiments.jobs.classification.job import train_and_evaluate

pytestmark = pytest.mark.usefixtures("quick_compile")
PARTS = ("train", "test")


@pytest.fixture
def train(tmp_path):
    """Trains the run of `tmp_path / "run"` on the videos of `tmp_path / "videos"`."""
    videos.write(tmp_path / "videos")

    def train(num_steps):
        config = video_folder.get_config("smoke")
        config.example_videos = False
        config.data.path, config.data.num_frames = str(tmp_path / "videos"), 6
        config.model.widths, config.model.cut = (4, 4, 4, 4, 4), (2, 2, 2)
        config.train.num_steps = num_steps
        return train_and_evaluate(config, tmp_path / "run", Console(quiet=True))

    return train


# Orbax leaves reads of other parameters unfinished when one has another shape.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_cannot_go_on_leaves_the_names(train, tmp_path):
    """With wrong names predictions were of wrong classes."""
    train(2)
    names = ("config.json", "classes.json")
    before = [(tmp_path / "run" / name).read_text() for name in names]
    assert json.loads(before[1])["names"] == ["falling", "rightwards"]

    for part in PARTS:
        shutil.copytree(*(tmp_path / "videos" / part / name for name in ("falling", "rising")))
    said = (
        r"run was trained on other classes \(new: 'rising'\), so training cannot go on.*"
        r"--config.init_from=\S*run"
    )
    with pytest.raises(ValueError, match=said):
        train(3)
    for part in PARTS:  # As many as before, with other labels.
        shutil.rmtree(tmp_path / "videos" / part / "falling")
    with pytest.raises(ValueError, match=r"\(new: 'rising'; gone: 'falling'\)"):
        train(3)
    assert [(tmp_path / "run" / name).read_text() for name in names] == before
    assert trained.load(tmp_path / "run").classes == ("falling", "rightwards")
