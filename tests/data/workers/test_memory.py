"""In a process of its own: what it changes cannot be changed back."""

import subprocess
import sys

CODE = """
import resource
import numpy as np
from data.workers import memory
assert memory.keep_freed()
def use():
    [np.ones(3_000_000, np.uint8) for _ in range(8)]
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_is_kept():
    """Batches that are allocated and freed cause no more page faults than one of them has pages."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5800
