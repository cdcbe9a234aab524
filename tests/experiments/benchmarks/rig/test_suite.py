"""What all suites do with their rows."""

import json

import pytest

from experiments.benchmarks.rig import suite


def test_rows_that_are_measured_survive_what_comes_after_them(tmp_path):
    def rows():
        yield {"ms": 1}
        yield {"ms": 2}
        raise RuntimeError("the compiler gave up")

    path = tmp_path / "new" / "rows.json"
    with pytest.raises(RuntimeError, match="gave up"):
        suite.written(rows(), path)
    assert json.loads(path.read_text())["rows"] == [{"ms": 1}, {"ms": 2}]
    assert suite.written([{"ms": 3}], None) == [{"ms": 3}]
