import json

import numpy as np
import pytest

from experiments.workdir.metrics_log import MetricsLog, read


def test_continues_without_doubles_or_gaps(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for step in (2, 4, 6):
            log.write(step, "train", {"loss": 1 / step}, steps_per_second=3.0)
        log.write(4, "test", {"accuracy": 0.5})
        log.flush()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "split": "te')  # Killed in the middle of a line.
    with MetricsLog(tmp_path, 4) as log:
        assert log.evaluated == {4}
        log.write(6, "train", {"loss": 7.0})
    lines = list(read(tmp_path / "metrics.jsonl"))
    assert lines == [
        {"step": 2, "split": "train", "loss": 0.5},
        {"step": 4, "split": "train", "loss": 0.25},
        {"step": 4, "split": "test", "accuracy": 0.5},
        {"step": 6, "split": "train", "loss": 7.0},
    ]
    assert lines == list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))


def test_every_line_is_on_disk_at_once(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, "train", {"loss": 2.0})
        assert [line["loss"] for line in read(tmp_path / "metrics.jsonl")] == [2.0]


def test_refuses_what_json_has_no_name_for(tmp_path):
    with MetricsLog(tmp_path, 0) as log, pytest.raises(ValueError, match="not JSON compliant"):
        log.write(1, "train", {"loss": float("nan")})


def test_tensorboard_has_numbers_speeds_and_clips(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, "train", {"loss": 2.0}, steps_per_second=3.0)
        log.write_clips("clips", np.zeros((2, 11, 4, 4, 3), np.uint8), 1)
    [file] = (tmp_path / "tensorboard").iterdir()
    written = file.read_bytes()
    for name in (b"train/loss", b"train/steps_per_second", b"clips", b"\x89PNG"):
        assert name in written
