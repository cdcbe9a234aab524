"""experiments/soak.py sees memory that grows, and none where nothing is kept."""

import re
import subprocess
import sys

import pytest

from experiments import soak
from tests.experiments import tiny

LEAK = """
import numpy as np
from experiments import soak
kept = []
looks = soak.watch(lambda n: kept.append(np.ones(2**18, "f4")), frames=200, seconds=60)
print("found", looks[-1].frames, soak.slope(looks))
"""


def test_it_sees_a_leak_and_its_size():
    """In a process of its own: in this one there may be free memory that it would fill first."""
    done = subprocess.run(
        [sys.executable, "-c", LEAK],
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    frames, slope = re.search(r"found (\d+) (\S+)", done.stdout).groups()
    assert int(frames) == 200
    assert float(slope) == pytest.approx(1e6, rel=0.1)  # 1 MiB a frame


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
