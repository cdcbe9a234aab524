"""The notebook: every cell with small settings, and its programs for TPU and CUDA."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export

from experiments.jobs.classification.job import prepare

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "sideways_in_colab.ipynb"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("devices", [1, pytest.param(3, marks=pytest.mark.full)])
def test_every_cell_runs(devices, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="of the extra `notebook`")
    nbclient = pytest.importorskip("nbclient", reason="of the extra `notebook`")
    monkeypatch.setenv("SIDEWAYS_NOTEBOOK", "small")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(devices))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear its outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    )
    assert "accuracy with the shortcut" in printed
    assert "after 48 frames the loss is 0." in printed
    execution = "depth_sharded" if devices > 1 else "time_parallel"
    assert f"sideways ({execution}) with simple_cnn" in printed


def definitions(devices):
    """What the cells define that train nothing, for so many devices."""
    names = {"__name__": "__main__", "SMALL": True, "DEVICES": devices, "jax": jax}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if "definitions" in cell["metadata"].get("tags", ()):
            exec("".join(cell["source"]), names)
    return SimpleNamespace(**names)


def assert_lowers(train_step, *arguments):
    for platform in ("tpu", "cuda"):
        exported = export.export(jax.jit(train_step), platforms=[platform])(*arguments)
        assert exported.platforms == (platform,)
    return exported.nr_devices


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("devices", [1, 8])
def test_its_own_networks_lower(devices):
    notebook = definitions(devices)
    frames, labels = notebook.clips(np.random.default_rng(0))
    for shortcuts in ([(-1, 1)], []):
        init, train_step = notebook.training(shortcuts)
        train_state = jax.eval_shape(init, jax.random.key(0), frames[0])
        assert assert_lowers(train_step, train_state, frames, labels) == min(devices, 2)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.full), 8])
def test_its_stream_lowers(devices):
    notebook = definitions(devices)
    config = notebook.stream_config()
    shape = (24, config.batch_size, config.size, config.size, 3)
    frames = jax.ShapeDtypeStruct(shape, np.uint8)
    init, train_step = notebook.stream_training()
    train_state = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape[1:], np.uint8))
    resets = jax.ShapeDtypeStruct(shape[:2], bool)
    used = assert_lowers(train_step, train_state, frames, frames, resets)
    assert used == min(devices, 6)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.full), 8])
def test_its_quickstart_lowers(devices, tmp_path):
    job = prepare(definitions(devices).quickstart_config(), tmp_path)
    batch = jax.eval_shape(lambda: next(job.open_batches()))
    assert assert_lowers(job.train_step, jax.eval_shape(job.init), batch) == min(devices, 6)
