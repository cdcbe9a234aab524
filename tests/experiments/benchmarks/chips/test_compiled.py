"""What the compiler for TPUs makes of a pipeline in one program, on a machine without a TPU.

`pip install -e '.[test,tpu-compile]'` and `pytest -m full` run them; without libtpu they are
skipped. One process at a time can use libtpu.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[4]


def compiled(what):
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "tests.experiments.benchmarks.chips.compiled", what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT)
    if done.returncode:  # Not by `assert`: that is how the tests below are expected to fail.
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def slots():
    return compiled("slots")


@pytest.fixture(scope="module")
def clips():
    return compiled("clips")


def test_memory_is_flat_in_the_frames(clips):
    short, long = clips["memory"]
    assert 0 < long <= 1.1 * short


def test_messages_start_and_end_apart(clips):
    assert clips["permutes"] == ["collective-permute-done", "collective-permute-start"]


def test_frames_are_converted_one_by_one(clips):
    assert clips["whole_clip"] == []


def test_a_device_moves_its_own_slots(slots):
    assert slots["own"] > 0


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="libtpu copies a slot of 1 MB in one of the three branches that pass it through",
)
def test_no_device_moves_slots_of_another_in_a_step(slots):
    assert slots["foreign"] == []
