"""docs/splitting.md: its examples, as they stand there."""

import pathlib
import re

import jax
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[3] / "docs" / "splitting.md"
CODE = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.usefixtures("quick_compile")
def test_example():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names: dict = {}
        exec(CODE[0], names)
    assert names["network"].shortcuts == ((0, 2),)
    assert names["output"].shape == (2, 32, 32, 1)
    assert np.isfinite(names["metrics"]["loss"])
