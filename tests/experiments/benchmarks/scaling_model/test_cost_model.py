"""The cost model, by hand and by the library's clock tables."""

import numpy as np
import pytest

from experiments.benchmarks.scaling_model import cost_model
from experiments.benchmarks.scaling_model.cost_model import Link, Modules, Overhead, predict
from sideways_jax.rule import schedules

FREE_LINK, NOTHING = Link(0.0, 0.0), Overhead(0.0, 0.0, 0.0, 0.0)


def equal(depth, forward=1.0, both=3.0, signal_bytes=100, param_bytes=10):
    return Modules(
        (forward,) * depth, (both,) * depth, (signal_bytes,) * (depth - 1), (param_bytes,) * depth
    )


def seconds(rule, modules, num_frames, num_devices, link=FREE_LINK, overhead=NOTHING):
    return predict(rule, modules, num_frames, num_devices, link, overhead).seconds


@pytest.mark.parametrize("rule", cost_model.RULES)
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_the_formulas_of_equal_devices(rule, num_devices):
    """Those at the head of the file: groups of 4 / N modules, 1 s forward and 2 s backward each."""
    num_frames, n = 9, num_devices
    c, forward, everything = 3 * 4 / n, 4 / n, 12
    sent = 100 * (3 if n == 1 else 4 // n)  # The top sends nothing.
    if rule == "gpipe":  # It keeps what arrives from below alone.
        sent = 0 if n == 1 else 100
    x = 0.25 + 0.5 + 0.01 * sent  # per step, for 10 bytes of parameters a module, for activations
    x += {1: 0, 2: 1, 4: 2}[n] * (0.5 + 100 * 0.01)  # Between two devices both ways at once.
    expected = {
        "sideways": num_frames * (c + x),
        "blocking": num_frames * (everything + (2 * n - 1) * x),
        "1f1b": (num_frames + n - 1) * c + (num_frames + 2 * n - 2) * x,
        "gpipe": (num_frames + n - 1) * (c + forward) + (2 * num_frames + 2 * n - 3) * x,
    }[rule]
    overhead = Overhead(0.25, 0.5 / (40 / n), 0.01, per_update=7.0)
    found = seconds(rule, equal(4), num_frames, n, Link(0.5, 0.01), overhead)
    assert found == pytest.approx(expected + 7)


def test_the_largest_group_and_the_longest_message_count():
    """Modules of 1, 1, 4 s on two devices: (0, 1) and (2), cut where 30 bytes go up."""
    modules = Modules((0.5, 0.5, 2.0), (1.0, 1.0, 4.0), (999, 30), (5, 6, 7))
    found = predict("sideways", modules, 10, 2, Link(1.0, 0.1), Overhead(0.0, 1.0, 0.5, 0.0))
    assert found.groups == ((0, 1), (2,))
    assert found.seconds == pytest.approx(10 * (4 + (1 + 3) + 11 + 0.5 * 1029))
    assert found.ideal_speedup == pytest.approx(6 / 4)


@pytest.mark.parametrize("rule", ["blocking", "gpipe", "1f1b"])
def test_unequal_devices_by_the_clock_table(rule):
    """Without a barrier no step takes longer than its slowest stage; one stage sets the pace."""
    costs = np.array([1.0, 5.0, 2.0])
    modules = Modules(tuple(costs / 4), tuple(costs), (8, 8), (4, 4, 4))
    table = schedules.make(rule, 7, 3)
    forward, back = costs / 4, costs * (1 if rule == "gpipe" else 3 / 4)
    work = (table.forward >= 0) * forward + (table.backward >= 0) * back
    in_lockstep = work.max(1).sum()
    found = seconds(rule, modules, 7, 3)
    assert work.sum(0).max() <= found <= in_lockstep + 1e-9
    if rule == "blocking":
        assert found == pytest.approx(7 * 8)


def test_a_frame_passes_every_device_of_blocking_backprop():
    """Played step by step it takes what the formula says: there is one chain of who waits."""
    modules = Modules((1.0, 2.0, 3.0), (3.0, 7.0, 4.0), (8, 8), (4, 4, 4))
    table = schedules.blocking(5, 3)
    work = cost_model.step_seconds("blocking", table, modules, ((0,), (1,), (2,)))
    assert cost_model.play(work, between=0.5) == pytest.approx(5 * (14 + 5 * 0.5))
    assert seconds("blocking", modules, 5, 3, Link(0.25, 0.0)) == pytest.approx(5 * (14 + 5 * 0.5))


def test_an_early_device_need_not_wait_for_a_late_one_far_away():
    work = np.zeros((2, 4))
    work[0, 0], work[1, 3] = 5.0, 5.0  # Three devices apart: at the same time.
    assert cost_model.play(work, between=0.0) == 5
    work[1, 1] = 1.0  # A neighbour of the first: after it.
    assert cost_model.play(work, between=0.0) == 6


@pytest.mark.parametrize("rule", cost_model.RULES)
def test_terms_add_up(rule):
    link, overhead = Link(0.5, 0.01), Overhead(0.1, 0.02, 0.01, 3.0)
    found = predict(rule, equal(4), 16, 4, link, overhead)
    assert sum(found.terms.values()) == pytest.approx(found.seconds)
    assert min(found.terms.values()) >= 0


def test_terms_of_sideways():
    """Module 1 of 4 learns in 10 of 16 steps; a step is 3 s of work and 1 of messages."""
    terms = predict("sideways", equal(4), 16, 4, Link(0.5, 0.0), NOTHING).terms
    expected = {"compute": 30.0, "link": 10.0, "overhead": 0.0, "filling": 24.0}
    assert terms == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "depth", "devices", "frames", "latency", "per_step", "limit"),
    [
        ("sideways", 8, 2, 64, 0.0, 0.0, "devices"),
        ("sideways", 8, 8, 64, 0.0, 0.0, "module"),
        ("sideways", 8, 8, 64, 9.0, 0.0, "link"),
        ("sideways", 8, 8, 64, 0.0, 9.0, "overhead"),
        ("sideways", 8, 8, 16, 0.0, 0.0, "filling"),
        ("1f1b", 8, 8, 4, 0.0, 0.0, "filling"),
        ("blocking", 8, 8, 64, 0.0, 0.0, "one at a time"),
        ("blocking", 8, 1, 64, 0.0, 0.0, "devices"),
    ],
)
def test_limits(rule, depth, devices, frames, latency, per_step, limit):
    overhead = Overhead(per_step, 0.0, 0.0, 0.0)
    assert predict(rule, equal(depth), frames, devices, Link(latency, 0.0), overhead).limit == limit


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="at least 127"):
        seconds("sideways", equal(64), 64, 2)
    assert seconds("1f1b", equal(64), 64, 2) > 0


def test_fits_find_what_made_the_numbers():
    link = Link(3e-5, 4e-10)
    sizes = (2**12, 2**15, 2**20)
    times = [cost_model.exchange_seconds(link, one, 2) for one in sizes]
    found = cost_model.fit_link(sizes, times, 2)
    assert found == pytest.approx(link)
    overhead = Overhead(2e-4, 3e-10, 5e-10, 4e-3)
    steps, held = (64, 16, 64, 64), ((64, 90), (64, 90), (1_500_000, 90), (64, 800_000))
    values = [
        t * (2e-4 + 3e-10 * params + 5e-10 * sent) + 4e-3
        for t, (params, sent) in zip(steps, held, strict=True)
    ]
    assert cost_model.fit_overhead(steps, held, values) == pytest.approx(overhead)
    assert min(cost_model.fit_overhead(steps, held, [0.1, 0.2, -0.1, 0.3])) >= 0
