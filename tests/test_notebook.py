"""The notebook runs from top to bottom, with small settings."""

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "sideways_in_colab.ipynb"


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_every_cell_runs(monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="of the extra `notebook`")
    nbclient = pytest.importorskip("nbclient", reason="of the extra `notebook`")
    monkeypatch.setenv("SIDEWAYS_NOTEBOOK", "small")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear its outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
    )
    client.execute()
    printed = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream" and output["name"] == "stdout"
    ]
    assert any("accuracy with the shortcut" in text for text in printed)
    assert any(text.startswith("after 48 frames the loss is 0.") for text in printed)
