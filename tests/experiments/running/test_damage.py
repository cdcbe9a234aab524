"""A damaged run goes on from what is whole, and says what is lost; a full disk is one line."""

import itertools
import os
import shutil
import subprocess

import pytest
from rich.console import Console

from experiments.jobs.classification.job import train_and_evaluate
from experiments.workdir import space
from tests.experiments import tiny

QUICKSTART = "--config=experiments/configs/quickstart.py:smoke"
STEPS = {"train__log_every": 1, "train__checkpoint_every": 2, "train__eval_every": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps, with checkpoints at 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("whole")
    train_and_evaluate(tiny.config(**STEPS), workdir)
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def go_on(run):
    console = Console(file=open(run / "said", "w+"), width=1000)  # noqa: SIM115
    with console.file:
        train_and_evaluate(tiny.config(**STEPS), run, console)
        console.file.seek(0)
        return console.file.read()


def remove(file):
    file.unlink()


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x01
    file.write_bytes(content)


PARTS = "data/metadata", "train_state/_METADATA", "train_state/d"
IN_CI = (remove, "data/metadata"), (flip, "train_state/d")


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        pytest.param(*case, marks=() if case in IN_CI else pytest.mark.full)
        for case in itertools.product((remove, cut, flip), PARTS)
    ],
)
def test_a_damaged_checkpoint(damage, part, run, whole):
    file = run / "checkpoints" / "6" / part
    [file] = file.iterdir() if file.is_dir() else [file]
    damage(file)
    said = go_on(run)
    assert f"{file} is {'missing' if damage is remove else 'damaged'}" in said
    assert "Going back from step 6 to step 4" in said
    assert "Going on from step 4." in said
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4", "6"]
    assert (run / "damaged" / "6").is_dir()
    assert "Going on from step 6." in go_on(run)


def test_without_checksums_what_orbax_cannot_read(run):
    """A kill between the checkpoint and its checksums leaves none."""
    for step in (4, 6):
        (run / "checkpoints" / str(step) / "checksums.json").unlink()
    cut(run / "checkpoints" / "6" / "data" / "metadata")
    assert "Going back from step 6 to step 4" in go_on(run)


def test_no_checkpoint_is_whole(run):
    for step in (2, 4, 6):
        remove(run / "checkpoints" / str(step) / "data" / "metadata")
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*6/data/metadata is missing"):
        go_on(run)
    assert (run / "checkpoints" / "6").is_dir()  # Nothing is moved when nothing is gained.


def test_bad_lines_in_the_log(run):
    bad = [b"{\n", b'{"step": "x", "split": "train"}\n', b"[]\n", b"\xff\x00\n"]
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:1], *bad, *lines[1:]]))
    assert f"{log}: lines 2, 3, 4, 5 cannot be read, and are left out" in go_on(run)
    assert log.read_bytes() == b"".join(lines)
    assert b"".join(bad) in (run / "metrics.damaged").read_bytes()
    assert "cannot be read" not in go_on(run)


def test_what_a_full_disk_is():
    def raised(error, cause=None):
        try:
            raise error from cause
        except Exception as caught:
            return caught

    full = OSError(28, "No space left on device")
    assert space.is_full(full)
    assert space.is_full(raised(RuntimeError("saving failed"), full))
    assert space.is_full(ValueError("RESOURCE_EXHAUSTED: x [OS error 28: No space left on device]"))
    assert not space.is_full(raised(ValueError("x"), KeyError("y")))


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("kilobytes", [40, 150, 330])
def test_a_full_disk_is_one_line(kilobytes, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        flags = [QUICKSTART, f"--workdir={disk / 'run'}", *tiny.overrides(train__eval_every=0)]
        done = tiny.run_main(*flags, "--config.train.num_steps=3000")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith(
            f"Error: there is no space left in {disk / 'run'}: a checkpoint takes"
        )
        assert "are free. Make room" in line
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        saved = [int(path.name) for path in disk.glob("run/checkpoints/*") if path.name.isdigit()]
        done = tiny.run_main(*flags, f"--config.train.num_steps={max(saved, default=0) + 2}")
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)
