"""All ways through a network give the same bits, and a player that finds others says so."""

import jax
import numpy as np
import pytest

from experiments.benchmarks.rig import frame_by_frame
from experiments.benchmarks.rig.programs import num_layers

FRAMES = np.random.default_rng(0).integers(0, 256, (7, 2, 12, 12, 3), np.uint8)


@pytest.fixture(scope="module")
def layers():
    frame = jax.ShapeDtypeStruct(FRAMES.shape[1:], np.uint8)
    return frame_by_frame.in_layers("simple_cnn", frame)


@pytest.fixture(scope="module")
def cuts(layers):
    costs = [3, 1, 1, 1, 2, 2]
    return {number: frame_by_frame.make_cut(layers, costs, number, 2) for number in (2, 3, 6)}


def answers(cut, folder):
    one_by_one = frame_by_frame.modules_alone(cut)
    path = folder / "answers.npy"
    np.save(path, np.stack([np.asarray(one_by_one(frame)[0]) for frame in FRAMES]))
    return path


def test_cuts_are_even_and_have_the_same_weights(layers, cuts):
    assert [cut.layers for cut in cuts.values()] == [(3, 3), (1, 3, 2), (1,) * 6]
    assert [cut.groups for cut in cuts.values()] == [(1, 1), (2, 1), (3, 3)]
    costs = frame_by_frame.costs_of(layers, FRAMES[0])
    assert len(costs) == num_layers("simple_cnn") == 6
    outputs = [cut.network.apply(cut.params, cut.state, FRAMES[0])[0] for cut in cuts.values()]
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-5)


@pytest.mark.parametrize("execution", [None, "depth_sharded", "program_per_device"])
@pytest.mark.parametrize("number", [2, 3])
def test_pipelines_have_the_bits_of_the_modules_one_by_one(cuts, execution, number, tmp_path):
    path = answers(cuts[number], tmp_path)
    push = frame_by_frame.in_pipeline(cuts[number], execution)
    play = frame_by_frame.player(push, FRAMES, path, 5, lag=number - 1)
    for _ in range(3):  # 15 frames: twice through the stream.
        said = play()
        assert said["equal"] and said["difference"] == 0 and said["latency"] > 0


def test_other_bits_are_found(cuts, tmp_path):
    path = answers(cuts[2], tmp_path)
    push = frame_by_frame.in_pipeline(cuts[2], None)
    play = frame_by_frame.player(push, FRAMES, path, 7, lag=1)
    wrong = np.load(path)
    largest = np.abs(wrong[4]).max()
    wrong[4, 1, 3] = np.nextafter(wrong[4, 1, 3], np.inf, dtype=np.float32)
    np.save(path, wrong)
    said = play()
    assert not said["equal"] and 0 < said["difference"] < 1e-5
    wrong[4, 1, 3] += largest
    np.save(path, wrong)
    assert play()["difference"] > 0.4
    late = frame_by_frame.player(push, FRAMES, answers(cuts[2], tmp_path), 7)
    assert not late()["equal"]  # Each is that of the frame before.


def test_devices_that_take_frames_in_turn_take_all_of_them(tmp_path):
    path, taken = tmp_path / "answers.npy", []
    np.save(path, FRAMES)
    for place in range(2):
        mine = []

        def push(frame, mine=mine):
            mine.append(int(np.flatnonzero((frame == FRAMES).all(axis=(1, 2, 3, 4)))[0]))
            return jax.numpy.asarray(frame), [0.5]

        play = frame_by_frame.player(push, FRAMES, path, 3, place=place, stride=2)
        said = [play() for _ in range(2)]
        assert all(one["equal"] and one["parts"] == [0.5] for one in said)
        taken.append(mine[1:])  # The first is for the compiler.
    assert taken == [[0, 2, 3, 5], [1, 4]]
