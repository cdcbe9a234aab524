"""Clock tables."""

import numpy as np
import pytest

from sideways_jax import step
from sideways_jax.rule import schedules
from sideways_jax.rule.schedules import SCHEDULES, ClockTable
from tests.sideways_jax import networks

# DESIGN of Sideways, section 3.4: D = 5, L = 9, activation / pseudo-gradient, counted from 1.
FIVE_MODULES = """
step    1    2    3    4    5
   1  1/-  -/-  -/-  -/-  -/-
   2  2/-  1/-  -/-  -/-  -/-
   3  3/-  2/-  1/-  -/-  -/-
   4  4/-  3/-  2/-  1/-  -/-
   5  5/-  4/-  3/-  2/-  1/1
   6  6/-  5/-  4/-  3/1  2/2
   7  7/-  6/-  5/1  4/2  3/3
   8  8/-  7/1  6/2  5/3  4/4
   9  9/1  8/2  7/3  6/4  5/5
"""


def test_sideways_of_five_modules():
    assert schedules.text(schedules.sideways(9, 5)) == FIVE_MODULES.strip("\n")
    assert (schedules.sideways(9, 5).backward >= 0).sum(0).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("x64", "quick_compile")
def test_computation_steps_do_what_the_table_says():
    """`computation_step` knows no formulas: it passes frame numbers along."""
    depth, num_frames = 5, 11
    network = networks.dense_network(depth)
    frames, targets = networks.random_clip(num_frames)
    params, state = network.init(networks.jax.random.key(0), frames[0])
    in_flight = step.init_in_flight(network, params, state, frames[0])
    table = schedules.sideways(num_frames, depth)

    @networks.jax.jit
    def tick(in_flight, t):
        return step.computation_step(
            network, networks.squared_error, params, state, in_flight, frames[t], targets[t], t
        )

    for t in range(num_frames):
        one = tick(in_flight, np.int32(t))
        in_flight = one.in_flight
        np.testing.assert_array_equal(one.frames, table.forward[t])
        np.testing.assert_array_equal(one.origins, table.backward[t])


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 12])
def test_exact_schedules_can_be_executed(num_stages, num_frames):
    steps = {
        "blocking": num_frames * (2 * num_stages - 1),
        "gpipe": 2 * (num_frames + num_stages - 1) - 1,
        "1f1b": num_frames + 2 * (num_stages - 1),
    }
    for name in SCHEDULES:
        table = schedules.make(name, num_frames, num_stages)
        schedules.check(table)
        assert (table.num_steps, table.num_stages) == (steps[name], num_stages)
        assert table.forward.dtype == table.backward.dtype == np.int32
        for frames in (table.forward, table.backward):  # Everybody does everything once.
            for stage in range(num_stages):
                assert sorted(set(frames[:, stage]) - {-1}) == list(range(num_frames))


def test_memory_is_that_of_the_schedule():
    for num_frames in (20, 200):
        assert schedules.make("blocking", num_frames, 4).stash == 1
        assert schedules.make("1f1b", num_frames, 4).stash == 2 * 4 - 1
        assert schedules.make("gpipe", num_frames, 4).stash == num_frames


def test_1f1b_is_sideways_with_older_inputs():
    """1F1B has a FIFO: the same pipeline, except that Sideways linearises at the newest."""
    exact, sideways = schedules.make("1f1b", 12, 4), schedules.sideways(12, 4)
    np.testing.assert_array_equal(exact.forward[:12], sideways.forward)
    np.testing.assert_array_equal(exact.backward[:12], sideways.backward)


def _broken(name, change):
    table = schedules.make(name, 4, 3)
    forward, backward = table.forward.copy(), table.backward.copy()
    stash = change(forward, backward)
    return ClockTable(name, forward, backward, table.stash if stash is None else stash)


def _late(forward, backward):
    forward[:, 1] = np.roll(forward[:, 1], 1)


def _forgotten(forward, backward):
    backward[backward[:, 0] == 2, 0] = -1


def _twice(forward, backward):
    forward[-1, 2] = 0


def _too_early(forward, backward):
    backward[:] = np.roll(backward, -2, axis=0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpipe", _late, "does not arrive one step after"),
        ("1f1b", _forgotten, "frame 2 is worked on 0 times"),
        ("blocking", _twice, "frame 0 is worked on 2 times"),
        ("1f1b", _too_early, "goes back before it came"),
        ("gpipe", lambda *_: 3, "keeps 4 inputs, more than 3"),
        ("1f1b", lambda *_: 3, "keeps 4 inputs, more than 3"),
        ("1f1b", lambda *_: 0, "more than 0"),
    ],
)
def test_tables_that_cannot_be_executed(name, change, message):
    with pytest.raises(ValueError, match=message):
        schedules.check(_broken(name, change))


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match=r"gpip.*gpipe"):
        schedules.make("gpip", 4, 2)
