"""experiments/soak.py sees memory that grows, and none where nothing is kept."""

import subprocess
import sys

import numpy as np
import pytest

from experiments import soak
from tests.experiments import tiny


def test_it_sees_a_leak_and_its_size():
    kept = []
    looks = soak.watch(lambda n: kept.append(np.ones(2**18, "f4")), frames=200, seconds=60)
    assert [look.frames for look in looks][-1] == 200
    assert soak.slope(looks) == pytest.approx(1e6, rel=0.1)  # 1 MiB a frame


def test_it_ends_in_time():
    looks = soak.watch(lambda n: None, frames=10**9, seconds=0.2)
    assert 0 < looks[-1].frames < 10**9
    assert 10 < len(looks) <= soak.PARTS + 2


@pytest.mark.full
@pytest.mark.parametrize("what", ["inference", "training"])
def test_some_frames(what):
    command = [sys.executable, "experiments/soak.py", f"--what={what}", "--frames=20000"]
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20,000 frames in" in done.stdout
