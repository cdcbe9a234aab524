import numpy as np

from data import default_config, load
from experiments.examples import videos as example_videos


def test_they_train_and_move_as_they_say(tmp_path):
    example_videos.write(tmp_path)
    example_videos.write(tmp_path)  # Again: they are there already.
    config = default_config("video_folder")
    config.path = str(tmp_path)
    config.cache_dir = str(tmp_path / "cache")
    config.resize, config.size = 0, 32
    config.num_frames = example_videos.NUM_FRAMES
    source = load(config, seed=0)
    assert source.classes == ("falling", "rightwards")
    assert (source.num_train, source.num_test, source.skipped) == (4, 2, ())
    for batch in source.test(1):
        [frames], [label] = batch["frames"][..., 0] > 130, batch["label"]
        rows, columns = (frames.any(axis=axis) for axis in (2, 1))
        down, right = ((np.diff(seen.argmax(axis=1)) > 0).sum() for seen in (rows, columns))
        falls = source.classes[label] == "falling"
        assert (down > right) == falls
