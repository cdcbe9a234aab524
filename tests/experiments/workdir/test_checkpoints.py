from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data import load
from experiments.workdir.checkpoints import KEPT, Checkpoints
from sideways_jax.step import TrainState
from tests.experiments import tiny


def train_state(value):
    return TrainState(
        step=jnp.int32(value),
        params=({"w": jnp.full((8, 2), value, jnp.float32)}, ()),
        state=((), {"mean": jnp.full((3,), value, jnp.bfloat16)}),
        opt_state=({"count": jnp.int32(value)}, ()),
        in_flight=(),
        rng=jax.random.key(value),
        frames=jnp.int32(10 * value),
    )


@pytest.fixture
def batches():
    source = load(tiny.config().data, seed=0)
    iterator = iter(source.train)
    yield iterator
    iterator.close()


def test_state_data_and_progress_come_back(tmp_path, batches):
    for _ in range(3):
        next(batches)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(5, train_state(5), batches, {"window": [{"loss": 0.1}]})
    following = next(batches)
    fresh = iter(load(tiny.config().data, seed=0).train)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 5
        restored = checkpoints.restore(5, train_state(0), fresh)
    assert restored.progress == {"window": [{"loss": 0.1}]}
    assert jax.tree.structure(restored.train_state) == jax.tree.structure(train_state(5))
    for leaf, saved in zip(
        jax.tree.leaves(restored.train_state), jax.tree.leaves(train_state(5)), strict=True
    ):
        assert leaf.dtype == saved.dtype
        assert leaf.sharding == saved.sharding
        assert jnp.array_equal(leaf, saved)
    jax.tree.map(np.testing.assert_array_equal, next(fresh), following)


def test_restores_onto_other_devices(tmp_path, batches):
    """The shardings of the target count, not those that were saved."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train_state(1), batches, {})
    mesh = jax.make_mesh((8,), ("depth",), axis_types=(jax.sharding.AxisType.Auto,))
    split, everywhere = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("depth"), PartitionSpec())
    )
    target = jax.device_put(train_state(0), everywhere)
    target.params[0]["w"] = jax.device_put(target.params[0]["w"], split)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, target, batches).train_state
    assert restored.params[0]["w"].sharding == split
    assert restored.state[1]["mean"].sharding == everywhere
    np.testing.assert_array_equal(restored.params[0]["w"], np.ones((8, 2)))


def test_keeps_the_newest_and_saves_a_step_once(tmp_path, batches):
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, KEPT + 3):
            checkpoints.save(step, train_state(step), batches, {})
        checkpoints.save(step, train_state(0), batches, {})  # There already: nothing is written.
        restored = checkpoints.restore(step, train_state(0), batches)
    assert restored.train_state.step == step
    kept = sorted(int(file.name) for file in (tmp_path / "checkpoints").iterdir())
    assert kept == [3, 4, 5]


def test_half_a_checkpoint_is_none(tmp_path, batches):
    """What a killed run leaves of the checkpoint it was writing is passed over and removed."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train_state(1), batches, {})
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(2, train_state(2), batches, {})
        assert checkpoints.latest == 2
    assert not half.exists()


def test_other_data_are_refused(tmp_path, batches):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train_state(1), batches, {})
        other = iter(load(tiny.config(data__speed=2.0).data, seed=0).train)
        with pytest.raises(ValueError, match="videos was"):
            checkpoints.restore(1, train_state(0), other)


def test_a_checkpoint_of_an_earlier_version_is_named(tmp_path, batches):
    """It does not say how many frames had arrived, which streams need to go on."""

    class Earlier(NamedTuple):
        step: jax.Array
        params: tuple
        state: tuple
        opt_state: tuple
        in_flight: tuple
        rng: jax.Array

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, Earlier(*train_state(1)[:6]), batches, {})
        with pytest.raises(ValueError, match=r"checkpoints/1 was saved by .*how many frames"):
            checkpoints.restore(1, train_state(0), batches)


def test_what_is_in_host_memory_comes_back_there(tmp_path, batches):
    """What leaves a mesh: no device gets the modules of others when they are restored."""
    saved = train_state(1)._replace(params=({"w": np.ones((8, 2), np.float32)}, ()))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, batches, {})
        like = saved._replace(params=jax.tree.map(np.zeros_like, saved.params))
        restored = checkpoints.restore(1, like, batches).train_state
    assert isinstance(restored.params[0]["w"], np.ndarray)
    np.testing.assert_array_equal(restored.params[0]["w"], saved.params[0]["w"])
