"""The job on streams: what it writes, that it goes on where it stopped, and bad sources."""

import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from rich.console import Console

from data import load_streams
from experiments.configs import autoencoder
from experiments.jobs.autoencoding import job
from experiments.jobs.autoencoding.job import train_and_evaluate
from tests.experiments import tiny

QUIET = Console(quiet=True)


def _config(arguments="smoke", **fields):
    config = autoencoder.get_config(arguments)
    config.train.log_every = 1
    for name, value in fields.items():
        node, _, leaf = name.rpartition("__")
        target = config
        for part in filter(None, node.split("__")):
            target = target[part]
        target[leaf] = value
    return config.lock()


def _write_video(file, num_frames, sizes=((32, 24),)):
    """A bar that moves; when several sizes are given, the file changes from one to the next."""
    rows = []
    for number, (width, height) in enumerate(sizes):
        part = file.with_name(f"part{number}.ts") if len(sizes) > 1 else file
        with av.open(str(part), "w") as container:
            stream = container.add_stream("mpeg2video" if len(sizes) > 1 else "mpeg4", rate=24)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for n in range(num_frames):
                picture = np.full((height, width, 3), 40, np.uint8)
                picture[:, n % width : n % width + 4] = (200, 180, 60)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        rows.append(part)
    return rows


@pytest.mark.usefixtures("quick_compile")
def test_all_of_it_and_resumed(tmp_path):
    fields = {"train__eval_every": 2, "train__checkpoint_every": 1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    summary = train_and_evaluate(_config(train__num_steps=4, **fields), whole, QUIET)
    train_and_evaluate(_config(train__num_steps=2, **fields), stopped, QUIET)
    train_and_evaluate(_config(train__num_steps=4, **fields), stopped, QUIET)
    metrics = (whole / "metrics.jsonl").read_bytes()
    assert (stopped / "metrics.jsonl").read_bytes() == metrics
    lines = tiny.lines(whole)
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    assert all(line["lag"] == 5 for line in lines if line["split"] == "train")
    written = json.loads((whole / "summary.json").read_text())
    assert written["scores"] == summary.scores._asdict()
    assert summary.scores.frames == 2 * 22  # both test scenes, all frames
    assert summary.scores.frames_dropped == 0
    assert summary.scores.max_lag == 5
    assert {path.name for path in (whole / "strips").iterdir()} == {
        "after-000022-frames.png", "after-000044-frames.png",
    }  # fmt: skip
    for picture in ("training_curves.png", "middle_frames.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("quick_compile")
def test_the_future_as_target(tmp_path):
    """With shortcuts; beside the error there is that of repeating the frame of now."""
    config = _config("smoke,skip", data__future=2, train__num_steps=1)
    summary = train_and_evaluate(config, tmp_path, QUIET)
    [line] = [line for line in tiny.lines(tmp_path) if line["split"] == "test"]
    assert line["streaming_mse"] == summary.scores.streaming_mse
    streams = load_streams(config.data, seed=config.seed, split="test")
    batches = list(streams)[5:]  # Outputs are there from the sixth step on.
    streams.close()
    frames, targets = (
        np.stack([one[name] for one in batches]) / 255 for name in ("frames", "targets")
    )
    assert line["repeated_mse"] == pytest.approx(np.square(frames - targets).mean(), rel=1e-4)
    [strip] = (tmp_path / "strips").iterdir()
    assert strip.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("quick_compile")
def test_blocking_backprop(tmp_path):
    summary = train_and_evaluate(_config("smoke,rule=backprop"), tmp_path, QUIET)
    assert summary.rule == "backprop"
    assert summary.scores.max_lag == 10  # 2D-2: blocks for D frames at test time
    lags = [line["lag"] for line in tiny.lines(tmp_path) if line["split"] == "train"]
    assert 5 < lags[1] < 15  # D-1 to 3D-3 while it learns


@pytest.mark.usefixtures("quick_compile")
def test_a_file_that_ends_before_the_steps_are_done(tmp_path):
    _write_video(tmp_path / "video.mp4", 60)
    config = _config(
        "smoke,data=video_file", data__path=str(tmp_path / "video.mp4"), data__repeat=False,
        data__batch_size=1, train__num_steps=50,
    )  # fmt: skip
    summary = train_and_evaluate(config, tmp_path / "run", QUIET)
    assert summary.frames == 44  # four chunks of 11 out of the first 45
    assert summary.scores.frames == 15
    assert (tmp_path / "run" / "checkpoints" / "4").exists()


def test_a_source_that_fails_midway_leaves_what_there_is(tmp_path):
    """A pipe, since a file is looked through before; its frames change their size."""
    parts = _write_video(tmp_path / "changes.ts", 30, sizes=((32, 24), (48, 32)))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"cat {parts[0]} {parts[1]} > {pipe}"])
    try:
        run = tiny.run_main(
            "--config=experiments/configs/autoencoder.py:smoke,data=video_file",
            f"--workdir={tmp_path / 'run'}",
            f"--config.data.path={pipe}",
            "--config.data.batch_size=1",
            "--config.test_streams=False",
            "--config.train.num_steps=50",
            "--config.train.checkpoint_every=50",
        )
    finally:
        writer.kill()
        writer.wait()
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "the stream failed after 2 chunks" in run.stderr
    assert "48x32 pixels, the first one 32x24" in run.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").exists()
    assert (tmp_path / "run" / "summary.json").exists()
    assert [line["step"] for line in tiny.lines(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"online__chunk": 10, "online__update_every": 3}, "multiple of online.update_every=3"),
        ({"online__update_every": 0}, "update_every=0 must be at least 1"),
        ({"data__size": 20}, "multiples of 8"),
        ({"data__length": 4, "online__chunk": 2}, "fewer than D=6 frames"),
        ({"train__num_steps": 0}, "train.num_steps=0 must be at least 1"),
    ],
)
@pytest.mark.usefixtures("quick_compile")
def test_mistakes(fields, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train_and_evaluate(_config(**fields), tmp_path, QUIET)


@pytest.mark.usefixtures("quick_compile")
def test_advice_about_the_test_part_leads_to_a_run(tmp_path, monkeypatch):
    """The test part is looked at before the workdir is there, so that it can be left out."""
    load = job.load_streams

    def without_test_part(config, *, seed, split):
        if split == "test":
            raise ValueError("its test part is too short")
        return load(config, seed=seed, split=split)

    monkeypatch.setattr(job, "load_streams", without_test_part)
    with pytest.raises(ValueError, match=r"too short; .* --config\.test_streams=False"):
        train_and_evaluate(_config(train__num_steps=1), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
    advised = _config(train__num_steps=1, test_streams=False)
    assert train_and_evaluate(advised, tmp_path / "run", QUIET).frames == 22


def test_live(tmp_path):
    _write_video(tmp_path / "video.mp4", 20)
    out = tmp_path / "out" / "live.avi"
    command = [sys.executable, "experiments/live.py", f"--source={tmp_path / 'video.mp4'}",
               f"--out={out}", "--size=16", "--frames=14"]  # fmt: skip
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sideways: 14 frames" in done.stdout
    assert "lag 5.0" in done.stdout
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 14
    assert frames[0].shape == (16, 32, 3)
    same = [part.replace(str(out), str(tmp_path / "video.mp4")) for part in command]
    done = subprocess.run(same, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is the source" in done.stderr
    missing = [part.replace("video.mp4", "nothing.mp4") for part in command]
    done = subprocess.run(missing, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr
