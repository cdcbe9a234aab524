"""build_data.py and data_check.py as users run them, and the archives of the smoke tests."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data
from experiments import data_check
from experiments.configs import cater, hmdb51, ucf101, video_folder
from experiments.examples import archives as example_archives
from tests.data import downloads

ROOT = Path(__file__).resolve().parents[2]


def run(script, *arguments, status=0):
    command = [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)]
    # From anywhere.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, cwd="/"
    )
    assert done.returncode == status, done.stderr
    return done


def test_from_archives_to_a_checked_data_set(tmp_path):
    folder = downloads.hmdb51(tmp_path / "downloads")
    flags = ["hmdb51", f"--manual_dir={folder}", f"--data_dir={tmp_path / 'data'}"]
    run("build_data.py", *flags)
    assert (tmp_path / "data" / "hmdb51" / "side_128" / "1.0.0" / "dataset_info.json").exists()
    sheet = tmp_path / "sheet.png"
    done = run(
        "data_check.py",
        "--config=" + str(ROOT / "experiments/configs/hmdb51.py"),
        f"--config.data.path={tmp_path / 'data'}",
        "--config.data.num_workers=0",
        f"--sheet={sheet}",
        "--seconds=0.1",
        "--every_frame",
    )
    rows = [
        [cell.strip() for cell in line.strip("│ ").split("│")]
        for line in done.stdout.splitlines()
        if "│" in line
    ]
    assert rows == [
        ["brush_hair", "2", "41", "1", "22"],
        ["wave", "1", "23", "1", "24"],
        ["all", "3", "64", "2", "46"],
    ]
    assert "left out as bad: 0\nbad among the others: 0\n" in done.stdout
    assert sheet.stat().st_size > 5000


def test_a_build_that_fails_ends_in_the_reason(tmp_path):
    folder = downloads.ucf101(tmp_path / "downloads")
    (folder / "UCF-101/YoYo/v_YoYo_g01_c01.avi").unlink()
    done = run("build_data.py", "ucf101", f"--manual_dir={folder}",
               f"--data_dir={tmp_path / 'data'}", status=1)  # fmt: skip
    assert "Error: 1 of 6 listed videos are missing or damaged:\n  v_yoyo_g01_c01: missing" in (
        done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", [ucf101, hmdb51, cater])
def test_the_smoke_tests_have_real_builds(tmp_path, module):
    config = example_archives.with_examples(module.get_config("smoke"), tmp_path)
    source = data.load(config.data, seed=0)
    assert (source.num_train, source.num_test, source.steps_per_epoch) == (4, 2, 2)
    assert config.train.num_steps == source.steps_per_epoch
    counted = [row for row in data_check.counts(source) if row.train_videos]
    assert [row[1:] for row in counted] == [(2, 40, 1, 20)] * 2
    assert list(data_check.bad_videos(source, every_frame=True)) == []
    # The second time nothing is written.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = example_archives.with_examples(module.get_config("smoke"), tmp_path)
    assert again.data.path == os.fspath(tmp_path)
    assert times == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    }


def test_the_status_of_data_check_is_1_if_a_file_was_left_out(tmp_path, capsys):
    config = video_folder.get_config("smoke")
    config.data.cache_dir = str(tmp_path / "cache")
    settings = data_check.Settings(str(tmp_path / "sheet.png"), every_frame=False, seconds=0.01)
    folder = tmp_path / "videos"
    assert data_check._check(config, settings, folder) == 0  # It writes six videos there.
    assert "left out as bad: 0\nbad among the others: 0\n" in capsys.readouterr().out
    (folder / "train" / "falling" / "text.avi").write_text("not a video")
    assert data_check._check(config, settings, folder) == 1
    assert "left out as bad: 1\n" in capsys.readouterr().out


def test_data_check_names_what_cannot_be_decoded(tmp_path):
    """Bytes of a record that were overwritten after the build."""
    config = example_archives.with_examples(ucf101.get_config("smoke"), tmp_path)
    [file] = (tmp_path / "ucf101" / "smoke" / "1.0.0").glob("*-train*")
    content = bytearray(file.read_bytes())
    start = content.index(b"\xff\xd8\xff")  # the first JPEG: that of the first frame
    content[start : start + 64] = np.random.default_rng(0).bytes(64)
    file.write_bytes(content)
    source = data.load(config.data, seed=0)
    bad = list(data_check.bad_videos(source, every_frame=False))
    assert [name for name, _ in bad] == ["train v_handstandpushups_g01_c01"]
