"""Pipelined inference on a mesh: what one device shows, at the same step."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import make_mesh, models, stream
from sideways_jax.pipeline import inference
from tests.sideways_jax import networks, sharding
from tests.sideways_jax.sharding import BATCH, assert_close, case, variables


def _run(network, start, frames, resets, **options):
    """What a model shows at every step, and which streams it has an output of."""
    model = stream.PipelinedModel(network, *start, **options)
    shown = []
    for frame, reset in zip(frames, resets, strict=True):
        model.reset(reset)
        output = model.push(frame)
        shown.append((None if output is None else np.asarray(output), model.valid))
    assert model.counters.latency == network.depth - 1
    return shown


def _resets(num_frames):
    """Stream 1 starts again while it is still on its way up, stream 2 later; one cut alone."""
    resets = np.zeros((num_frames, BATCH), bool)
    resets[3, 1] = resets[9, 2] = resets[10, 2] = True
    return resets


@functools.cache
def _expected():
    """Frames, what one device shows of them, and the synchronous forward pass of each."""
    network, frame = case("vectors")
    start = variables(network, frame)
    frames = np.asarray(sharding.clip(16, frame)[0])
    apply = jax.jit(lambda frame: network.apply(*start, frame)[0])
    shown = _run(network, start, frames, _resets(16))
    return frames, shown, [np.asarray(apply(frame)) for frame in frames]


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize(
    ("mesh", "groups"),
    [
        ({"depth": 1}, None),
        ({"depth": 2}, (4, 1)),
        ({"depth": 3, "data": 2}, None),
        ({"depth": 5}, None),
    ],
)
def test_a_mesh_shows_what_one_device_shows(mesh, groups):
    network, frame = case("vectors")
    start = variables(network, frame)
    frames, expected, synchronous = _expected()
    actual = _run(network, start, frames, _resets(16), mesh=make_mesh(**mesh), groups=groups)
    late = network.depth - 1
    for t, ((output, valid), (same, same_valid)) in enumerate(zip(actual, expected, strict=True)):
        np.testing.assert_array_equal(valid, same_valid)
        assert (output is None) == (same is None) == (t < late)
        if output is not None:
            np.testing.assert_allclose(output, same, rtol=0, atol=1e-14)
            # Which is the synchronous forward pass of the frame of D-1 steps ago.
            exact = synchronous[t - late]
            np.testing.assert_allclose(output[valid], exact[valid], rtol=0, atol=1e-14)
            assert (output[~valid] == 0).all()
    gaps = np.array([valid for _, valid in expected])[late:]
    assert gaps[:, 0].all() and not gaps[:, 1].all() and not gaps[:, 2].all()


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("mesh", [{"depth": 2}, {"depth": 3, "data": 2}])
def test_flush_on_a_mesh(mesh):
    """Every frame has its synchronous output, and the next stream nothing of them."""
    network, frame = case("vectors")
    frames, _, synchronous = _expected()
    model = stream.PipelinedModel(network, *variables(network, frame), mesh=make_mesh(**mesh))
    late = network.depth - 1
    for count in (9, 2):
        pushed = [model.push(frame) for frame in frames[:count]]
        outputs = pushed[late:] + model.flush()
        assert len(outputs) == count
        assert model.valid.shape == (min(late, count), BATCH) and model.valid.all()
        for output, exact in zip(outputs, synchronous, strict=False):
            np.testing.assert_allclose(output, exact, rtol=0, atol=1e-14)
    assert model.flush() == []


@pytest.mark.parametrize("name", ["simple_cnn", pytest.param("vgg8", marks=pytest.mark.full)])
def test_a_device_for_every_module_of_a_model(name):
    make, shape = {
        "simple_cnn": (lambda: models.simple_cnn(5, widths=(4, 5, 6, 7, 8)), (20, 20, 3)),
        "vgg8": (
            lambda: models.vgg8(5, widths=(4, 5, 6, 6, 6), hidden=(12, 8), dropout_rate=0.5),
            (32, 32, 3),
        ),
    }[name]
    network = make()
    frames = np.random.default_rng(0).integers(0, 256, (network.depth + 2, 2, *shape), np.uint8)
    start = jax.jit(lambda key: network.init(key, frames[0]))(jax.random.key(0))
    model = stream.PipelinedModel(network, *start, mesh=make_mesh(network.depth))
    outputs = [model.push(frame) for frame in frames]
    late = network.depth - 1
    assert outputs[:late] == [None] * late
    apply = jax.jit(lambda frame: network.apply(*start, frame)[0])
    for frame, output in zip(frames, outputs[late:], strict=False):
        np.testing.assert_array_equal(output, apply(frame))
        assert np.abs(output).max() > 1e-2


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("groups", [(2, 3), (1, 1, 2, 1)])
def test_nothing_leaks(groups):
    """Neither padding, nor what has not arrived, nor the stream before: all of that is NaN."""
    network, frame = case("vectors")
    start = variables(network, frame)
    frames = np.asarray(sharding.clip(12, frame)[0])
    ended = frames.copy()
    ended[:5, 1] = np.nan
    mesh = make_mesh(len(groups))

    def show(frames, bubble):
        held, pipeline, step = inference.make_pipelined_step(
            network, *start, frames[0], mesh=mesh, groups=groups, bubble=bubble
        )
        bad = [np.isnan(x).any() for x in jax.tree.leaves((held, pipeline))]
        assert any(bad) == np.isnan(bubble)
        step, shown = jax.jit(step), []
        for t, one in enumerate(frames):
            reset = (np.arange(BATCH) == 1) & (t == 5)
            pipeline, rows, ids = step(held, pipeline, one, reset)
            shown.append((inference.top_row(rows, mesh), ids))
        return shown

    poisoned = show(ended, np.nan)
    assert np.isnan(poisoned[4][0][1]).all()  # It was on its way.
    assert_close(poisoned[5:], show(frames, 0.0)[5:], 1e-14)


@pytest.mark.usefixtures("quick_compile")
def test_one_message_a_step_and_variables_where_they_belong():
    network, frame = networks.keyless_mixed_network(4), networks.PIXELS
    start = variables(network, frame, "float32")
    shape = jax.ShapeDtypeStruct((BATCH, *frame), jnp.float32)
    mesh = make_mesh(3)
    held, pipeline, step = inference.make_pipelined_step(network, *start, shape, mesh=mesh)
    for leaf in jax.tree.leaves(held):
        assert {piece.data.shape[0] for piece in leaf.addressable_shards} == {1}
    hlo = jax.jit(step).lower(held, pipeline, shape).compile().as_text()
    assert len(re.findall(r"= [^=]* collective-permute(-start)?\(", hlo)) == 1
    assert not re.search("all-reduce|all-gather|all-to-all", hlo)


def test_a_batch_that_does_not_divide():
    network, frame = case("vectors", "float32")
    start = variables(network, frame, "float32")
    model = stream.PipelinedModel(network, *start, mesh=make_mesh(2, data=3))
    with pytest.raises(ValueError, match=r"a batch of 4 does not divide into data=3"):
        model.push(np.zeros((4, *frame), np.float32))
