"""What the README says has to work."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_code_in_the_readme_runs(code):
    names = {}
    exec(code, names)
    if "train_state" in names:
        assert int(names["train_state"].step) == 1


def test_paths_in_the_readme_exist():
    paths = re.findall(r"(?:experiments|tests|docs)/[\w/]+\.(?:py|png|md)", README)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_names_no_path_of_a_machine():
    assert not re.search(r"/(?:work|root|home)/", README)
