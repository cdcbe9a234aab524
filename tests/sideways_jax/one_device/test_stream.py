"""Pipelined inference: the synchronous outputs, D-1 steps later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models, stream
from tests.sideways_jax import networks
from tests.sideways_jax.networks import BATCH

NETWORKS = {
    "simple_cnn": (lambda: models.simple_cnn(5, widths=(4, 5, 6, 7, 8)), (20, 20, 3)),
    "vgg8": (
        lambda: models.vgg8(5, widths=(4, 5, 6, 6, 6), hidden=(12, 8), dropout_rate=0.5),
        (32, 32, 3),
    ),
}


def _frames(count, shape, batch=2):
    return np.random.default_rng(0).integers(0, 256, (count, batch, *shape), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_synchronous_ones(name):
    make, shape = NETWORKS[name]
    network = make()
    frames = _frames(network.depth + 4, shape)
    params, state = jax.jit(lambda key: network.init(key, frames[0]))(jax.random.key(0))
    model = stream.PipelinedModel(network, params, state)
    apply = jax.jit(lambda frame: network.apply(params, state, frame)[0])
    outputs = [model.push(frame) for frame in frames]
    late = network.depth - 1
    assert outputs[:late] == [None] * late
    for frame, output in zip(frames, outputs[late:], strict=False):
        np.testing.assert_array_equal(output, apply(frame))
    assert model.counters.latency == late
    assert model.counters.pushed == len(frames)
    assert model.counters.frames_per_second > 0


@pytest.mark.usefixtures("quick_compile")
def test_a_reset_empties_the_pipeline_of_one_stream():
    network, params, state = networks.start(networks.dense_network, 3)
    frames, _ = networks.random_clip(9)
    model = stream.PipelinedModel(network, params, state)
    model.reset()  # Before anything: nothing to do.
    for frame in frames[:4]:
        model.push(frame)
    poisoned = jax.tree.map(lambda x: x.at[1].set(jnp.nan), model._pipeline.activations)
    model._pipeline = model._pipeline._replace(activations=poisoned)
    model.reset(np.arange(BATCH) == 1)
    shown = []
    for t, frame in enumerate(frames[4:], 4):
        output = np.asarray(model.push(frame))
        shown.append(model.valid)
        expected = np.asarray(network.apply(params, state, frames[t - 2])[0])
        np.testing.assert_allclose(output[model.valid], expected[model.valid], atol=1e-6)
        assert (output[~model.valid] == 0).all()
    only_others = np.arange(BATCH) != 1
    np.testing.assert_array_equal(shown, [only_others, only_others, *[[True] * BATCH] * 3])
    model.reset()
    assert model.push(frames[0]) is None


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("pushed", [0, 1, 2, 3, 7])
def test_flush_gives_what_is_still_to_come(pushed):
    """D = 3. Every frame has an output, and what comes next has nothing of them."""
    network, params, state = networks.start(networks.dense_network, 3)
    frames, _ = networks.random_clip(9)
    expected = [network.apply(params, state, frame)[0] for frame in frames]
    model = stream.PipelinedModel(network, params, state)
    for _ in range(2):  # The second time on a pipeline that was flushed.
        outputs = [model.push(frame) for frame in frames[:pushed]]
        counters = model.counters
        outputs = [output for output in outputs if output is not None] + model.flush()
        assert len(outputs) == pushed
        for output, exact in zip(outputs, expected, strict=False):
            np.testing.assert_allclose(output, exact, atol=1e-6)
        assert model.counters == counters
        assert model.flush() == []
    if pushed:
        assert model.valid.shape == (0, BATCH)
    assert [model.push(frame) for frame in frames[:2]] == [None, None]
    assert not model.valid.any()


@pytest.mark.usefixtures("quick_compile")
def test_flush_after_a_reset_of_one_stream():
    """D = 4; stream 1 begins anew with the last frame but one: what was before is gone."""
    network, params, state = networks.start(networks.dense_network, 4)
    frames, _ = networks.random_clip(6)
    model = stream.PipelinedModel(network, params, state)
    for t, frame in enumerate(frames):
        model.reset((np.arange(BATCH) == 1) & (t == 4))
        model.push(frame)
    outputs = np.asarray(model.flush())
    expected = np.stack([network.apply(params, state, frame)[0] for frame in frames[3:]])
    assert model.valid.shape == (3, BATCH)
    np.testing.assert_array_equal(model.valid[:, 1], [False, True, True])
    assert model.valid[:, np.arange(BATCH) != 1].all()
    np.testing.assert_allclose(outputs[model.valid], expected[model.valid], atol=1e-6)
    assert (outputs[0, 1] == 0).all()


@pytest.mark.usefixtures("quick_compile")
def test_a_scan_gives_the_same():
    network, params, state = networks.start(networks.batch_norm_network, 4)
    frames, _ = networks.random_clip(8)
    start = stream.init_pipeline(network, params, state, frames[0])
    _, out = stream.pipelined_outputs(network, params, state, start, frames)
    np.testing.assert_array_equal(out.frames[:, 0], [-1, -1, -1, 0, 1, 2, 3, 4])
    for t in range(3, 8):
        expected = network.apply(params, state, frames[t - 3])[0]
        np.testing.assert_allclose(out.outputs[t], expected, atol=1e-6)


@pytest.mark.usefixtures("quick_compile")
def test_mistakes():
    network, params, state = networks.start(networks.dense_network, 2)
    model = stream.PipelinedModel(network, params, state)
    with pytest.raises(ValueError, match="nothing was pushed yet"):
        _ = model.valid
    model.push(jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="a truth value for each of the 2 streams"):
        model.reset([1])
    with pytest.raises(ValueError, match="make another PipelinedModel"):
        model.push(jnp.zeros((3, 5)))
