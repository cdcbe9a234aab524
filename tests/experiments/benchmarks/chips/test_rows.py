"""Rows of executions, compiled for devices that every machine has: those of the CPU."""

import jax
import pytest

from experiments.benchmarks.chips import rows
from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.chips.topologies import CHIPS, Topology
from sideways_jax import models


@pytest.mark.parametrize(
    ("case", "switches"),
    [
        (Case("sideways", "program_per_device", depth=2), 0),
        pytest.param(
            Case("sideways", "program_per_device", depth=2, is_stream=True), 0,
            marks=pytest.mark.full,
        ),
        pytest.param(Case("sideways", "depth_sharded", depth=2), 1, marks=pytest.mark.full),
        pytest.param(
            Case("sideways", "depth_sharded", depth=2, is_stream=True), 2, marks=pytest.mark.full
        ),
        pytest.param(Case("sideways", "scan"), None, marks=pytest.mark.full),
        pytest.param(Case("sideways", "time_parallel", data=2), None, marks=pytest.mark.full),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_row(case, switches):
    network = models.make("simple_cnn", num_classes=10, widths=(2,) * 5)
    topology = Topology(jax.devices()[:2], {}, CHIPS["v5e"])
    frames = (11, 12) if case.execution == "scan" else (11,)
    row = rows.row(case, network, 8, frames, 2, topology)
    assert tuple(row["temporary_bytes_by_frames"]) == frames
    assert (row["growth"] is None) == (len(frames) == 1)
    assert row["temporary_bytes"] > 0
    assert row["ms_adj"] is not None  # Instructions of a CPU have no estimate; small ones are free.
    assert row["steps"] == (None if case.execution == "time_parallel" else 11)
    assert switches is None or row["switches_per_step"] == switches
    on_devices = case.depth > 1
    assert (row["messages_per_step"] > 0) == on_devices
    if case.execution == "program_per_device":
        # Up from one device, and down from the other.
        assert row["messages_per_step"] == 1
        assert len(row["device_us"]) == 2
        slowest = max(us for _, us in row["device_us"])
        assert row["branch_us_adj"] == pytest.approx(slowest)
        assert row["dispatch_ms"] == pytest.approx(11 * 2 * 0.08)
