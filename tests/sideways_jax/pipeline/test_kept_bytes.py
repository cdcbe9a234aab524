"""The bytes that modules keep on a mesh, counted and held."""

import jax
import jax.numpy as jnp
import optax
import pytest

from sideways_jax import Network, make_mesh, step
from sideways_jax.devices import report
from sideways_jax.devices.layout import place
from sideways_jax.pipeline.sideways_stage import bytes_kept
from sideways_jax.rule.task import Task
from tests.sideways_jax import networks
from tests.sideways_jax.networks import squared_error

BATCH = 4


@pytest.fixture
def network():
    """Inputs of 5, 20 and 8 numbers; on two devices, the first has two modules."""
    return Network([networks.dense(20), networks.dense(8), networks.linear(3)])


def _shapes(network):
    frame = jax.ShapeDtypeStruct((BATCH, 5), jnp.float32)
    return (*jax.eval_shape(network.init, jax.random.key(0), frame), frame)


def test_counted_bytes_are_those_that_are_held(network):
    params, state, frame = _shapes(network)
    mesh = make_mesh(2)
    layout = place(network, params, state, frame, mesh, (2, 1))
    counted = bytes_kept(Task(network, squared_error, "pipelined_backprop"), mesh, frame)(layout)
    # Four bytes a number; the lowest module keeps 4 inputs, the next 2, the top none.
    assert list(counted.used) == [4 * BATCH * (4 * 5 + 2 * 20), 0]
    assert counted.held == 4 * BATCH * 4 * (5 + 20)
    init, _ = step.make_train_step(
        network, squared_error, optax.sgd(0.1), rule="pipelined_backprop", update_every=1,
        execution=step.Pipeline(mesh, groups=(2, 1)),
    )  # fmt: skip
    rows = jax.eval_shape(init, jax.random.key(0), frame).in_flight.kept.rows
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rows))
    assert held == mesh.size * counted.held


@pytest.mark.parametrize("recompute", [True, False])
def test_the_report_has_a_column_for_them(network, recompute):
    params, state, frame = _shapes(network)
    mesh = make_mesh(2)
    task = Task(network, squared_error, "pipelined_backprop")
    kept = bytes_kept(task, mesh, frame, recompute=recompute)
    shown = report.report(network, params, state, frame, mesh, (2, 1), kept)
    head, first, second, *_ = shown.splitlines()
    assert head.split()[-1] == "kept"
    used = 960 if recompute else None  # 4 * 4 * (4 * 5 + 2 * 20)
    assert used is None or first.split()[-1] == f"{used}/1,600"
    assert second.split()[-1].startswith("0/")


def test_sideways_keeps_nothing_and_has_no_column(network):
    params, state, frame = _shapes(network)
    mesh = make_mesh(2)
    kept = bytes_kept(Task(network, squared_error), mesh, frame)
    shown = report.report(network, params, state, frame, mesh, (2, 1), kept)
    assert "kept" not in shown
