"""What docs/after_training.md says, from a workdir to an export, as a user does it."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import export
from rich.console import Console

from experiments import trained
from experiments.configs import autoencoder, video_folder
from experiments.jobs.autoencoding import job as autoencoding
from experiments.jobs.classification import checkpoint
from experiments.jobs.classification.job import train_and_evaluate
from experiments.jobs.classification.prediction import classifier_of, predict
from sideways_jax import Network, from_linen, step
from tests.data import server
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
QUIET = Console(quiet=True)
TEXT = (tiny.ROOT / "docs" / "after_training.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on the six example videos, which are in its folder."""
    folder = tmp_path_factory.mktemp("mine")
    config = video_folder.get_config("smoke")
    config.model.widths, config.model.cut = (4, 4, 4, 4, 4), (2, 2, 2)
    config.data.num_frames = 6
    train_and_evaluate(config, folder, QUIET)
    return folder


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_commands(workdir, tmp_path):
    pytest.importorskip("flatbuffers", reason="of the extra `experiments`, for exports")
    videos = workdir / "example_videos"
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    where = f"--workdir={workdir}"
    found = [
        start("experiments/predict.py", where, videos, tmp_path / "bad.mp4",
              f"--json={tmp_path / 'rows.json'}"),
        start("experiments/evaluate_checkpoint.py", where, "--split=all", "--checkpoint=best",
              f"--path={videos}", f"--out={tmp_path / 'result'}"),
        start("experiments/export.py", where, f"--out={tmp_path / 'exported'}"),
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in found]
    assert [process.returncode for process in found] == [1, 0, 0], said
    lines = said[0][0].splitlines()
    assert len(lines) == 8
    assert lines[0].startswith(f"{tmp_path / 'bad.mp4'}: cannot be decoded")
    assert re.match(r"6 videos, .* videos/s, .* frames/s; 1 could not be read", lines[-1])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 7
    for row in rows[1:]:
        assert sum(row["classes"].values()) == pytest.approx(1)
        assert set(row["classes"]) == {"falling", "rightwards"}

    result = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert result["videos"] == np.sum(result["confusion"]) == 6
    right = [row["error"] is None and f"/{next(iter(row['classes']))}/" in row["source"]
             for row in rows]  # fmt: skip
    assert result["accuracy"] == pytest.approx(sum(right) / 6)
    for picture in ("confusion.png", "calibration.png"):
        assert (tmp_path / "result" / picture).read_bytes().startswith(b"\x89PNG")

    code = CODE[1].replace("/tmp/exported", str(tmp_path / "exported"))
    alone = start("-c", 'import sys; sys.modules["sideways_jax"] = None\n' + code)
    output, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors
    run = trained.load(workdir)
    black = np.zeros((9, 28, 28, 3), np.uint8)
    logits, _ = run.network.apply(run.params, run.state, black)
    assert output.strip() == run.classes[int(logits.mean(axis=0).argmax())]


def test_the_program(workdir, capsys):
    exec(CODE[0].replace("/tmp/quickstart", str(workdir)), {})
    assert capsys.readouterr().out.strip() in ("falling", "rightwards")


def test_a_prediction_is_that_of_the_test(workdir):
    run = trained.load(workdir)
    videos = workdir / "example_videos"
    data = run.config.data
    data.path = str(videos)
    tested = checkpoint.evaluate(*run[:4], data, seed=0, average="logits")
    found = list(predict(classifier_of(run), [str(videos / "test")], live_frames=0))
    assert len(found) == tested.videos > 0
    assert sum(one.frames for one in found) == tested.frames
    np.testing.assert_allclose(
        [one.probabilities for one in found], tested.probabilities, rtol=1e-5
    )


def test_the_time_of_predictions_is_that_of_videos(workdir):
    """What takes time before the first is done when the iterator is there."""
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(seconds)

    classifier = classifier_of(trained.load(workdir))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = predict(classifier, [str(workdir / "example_videos" / "test")], live_frames=0)
        before = len(compiled)
        assert list(found)
        assert before == len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_an_address_is_predicted_as_the_file(workdir):
    run = trained.load(workdir)
    path = workdir / "example_videos" / "test" / "falling" / "from_9.avi"
    with server.serving({"/video.avi": server.file(path)}) as address:
        sources = [f"{address}/video.avi", str(path), f"{address}/nothing.avi"]
        file, live, missing = predict(classifier_of(run, 30), sources, live_frames=0)
        [some] = predict(classifier_of(run, 30), sources[:1], live_frames=7)
    np.testing.assert_allclose(live.probabilities, file.probabilities, rtol=1e-4)
    assert (file.frames, live.frames, some.frames) == (20, 20, 7)
    assert "cannot be read" in missing.error


def test_other_classes_are_found_by_their_names(workdir, tmp_path):
    run = trained.load(workdir)
    data = run.config.data
    data.path = str(workdir / "example_videos")
    turned = run._replace(classes=run.classes[::-1])
    one, other = (
        checkpoint.evaluate(*of[:4], data, seed=0, average="logits", split="all")
        for of in (run, turned)
    )
    assert one.labels.tolist() == (1 - other.labels).tolist()
    unknown = run._replace(classes=("falling", "leftwards"))
    with pytest.raises(ValueError, match="not trained on 1 of 2 classes: rightwards; it knows"):
        checkpoint.evaluate(*unknown[:4], data, seed=0, average="logits")


@pytest.mark.full
def test_an_auto_encoder_paints(workdir, tmp_path):
    from experiments.jobs.autoencoding.prediction import paint

    config = autoencoder.get_config("smoke")
    autoencoding.train_and_evaluate(config, tmp_path, QUIET)
    run = trained.load(tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    sources = [str(tmp_path / "bad.mp4"), str(workdir / "example_videos" / "test")]
    bad, *painted = paint(
        run.config, *run[:3], sources, folder=tmp_path / "painted", live_frames=0
    )  # fmt: skip
    assert "cannot be decoded" in bad.error
    assert len(painted) == len(list((tmp_path / "painted").iterdir())) == 2
    for one in painted:
        assert one.scores.max_lag == run.network.depth - 1
        assert one.out.stat().st_size > 0
    saved = autoencoding.evaluate_saved(
        run.config, run.config.data, *run[:3], tmp_path / "evaluation"
    )
    last = [line for line in tiny.lines(tmp_path) if line["split"] == "test"][-1]
    assert saved.scores.streaming_mse == pytest.approx(last["streaming_mse"], rel=1e-5)


def test_what_a_loop_has_learned_is_kept():
    pytest.importorskip("flatbuffers", reason="of the extra `experiments`, for exports")
    network = Network([from_linen(layer) for layer in (nn.Dense(4), nn.BatchNorm(), nn.Dense(3))])
    init, _ = step.make_train_step(network, lambda y, t: jnp.mean(y - t), optax.sgd(0.1))
    frame = jax.random.normal(jax.random.key(1), (2, 5))
    names = {"network": network, "train_state": init(jax.random.key(2), frame), "frame": frame}
    exec(CODE[2], names)
    jax.tree.map(np.testing.assert_array_equal, names["learned"], names["train_state"][1:3])
    elsewhere = export.deserialize(names["program"]).call(frame)
    np.testing.assert_allclose(elsewhere, names["logits"], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("usual_promotion")
def test_training_goes_on_elsewhere(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers", reason="of the extra `experiments`, for exports")
    writes, reads = (code.replace("/tmp/exported", str(tmp_path)) for code in CODE[3:])
    names = {}
    exec(writes, names)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    alone = start("-c", 'import sys; sys.modules["sideways_jax"] = None\n' + reads)
    output, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors
    clip = names["frames"], names["targets"]
    train_state = names["init"](jax.random.key(0), clip[0][0])
    for _ in range(10):
        train_state, metrics = names["train_step"](train_state, *clip)
    assert float(output) == pytest.approx(float(metrics["loss"]), rel=1e-4)
