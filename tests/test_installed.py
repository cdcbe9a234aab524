"""What `pip install -e` puts on Python's path, where that was done (as in `.ci/run`)."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("sideways_jax", "experiments", "data")
PROGRAM = f"""
import importlib.util, json
print(json.dumps([importlib.util.find_spec(name).origin for name in {NAMES}]))
"""


def installed_from():
    """The URL of the checkout of an editable installation; None without one."""
    for found in metadata.distributions(name="sideways_jax"):
        about = json.loads(found.read_text("direct_url.json") or "{}")
        if about.get("dir_info", {}).get("editable"):
            return about["url"]
    return None


@pytest.mark.skipif(installed_from() != ROOT.as_uri(), reason="not installed from here by `-e`")
def test_a_program_beside_the_checkout_finds_it(tmp_path):
    """A folder of the package's name without `__init__.py`, as a checkout is, hid the package."""
    (tmp_path / "sideways_jax").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [str(ROOT / name / "__init__.py") for name in NAMES]
