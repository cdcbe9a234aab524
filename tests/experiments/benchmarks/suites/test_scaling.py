"""The suite `scaling`: rows of made-up measurements, and all of it once (`-m full`)."""

import json

import pytest

from experiments.benchmarks.scaling_model import cost_model
from experiments.benchmarks.scaling_model.cost_model import RULES, Link, Modules, Overhead, predict
from experiments.benchmarks.suites import scaling
from tests.experiments.test_benchmark import run

SETTINGS = {"model": "made_up", "frames": 64, "batch": 2, "size": 8, "dtype": "float32"}
LINK, OVERHEAD = Link(1e-4, 1e-9), Overhead(2e-4, 1e-9, 5e-10, 3e-3)


def modules(*costs, signal_bytes=1000, param_bytes=400):
    depth = len(costs)
    return Modules(
        tuple(one / 3 for one in costs), costs, (signal_bytes,) * (depth - 1),
        (param_bytes,) * depth,
    )  # fmt: skip


def made_up(devices, slower=1.0):
    """What a worker would say if the cost model were the truth, and networks `slower` than that."""
    networks = {
        "model": modules(0.01, 0.02, 0.03, 0.01, param_bytes=4000),
        "stack": modules(*[0.01] * 8),
        "one each": modules(*[0.01] * devices),
    }
    light = [
        modules(*[1e-5] * 2 * devices, param_bytes=params, signal_bytes=sent)
        for params, sent in ((64, 64), (64, 64), (10**6, 64), (64, 10**6))
    ]
    frames = (64, 16, 64, 64)
    times = {
        f"{name} {rule}": [slower * predict(rule, one, 64, devices, LINK, OVERHEAD).seconds]
        for name, one in networks.items()
        for rule in RULES
    }
    times |= {
        f"light {n} {rule}": [predict(rule, one, k, devices, LINK, OVERHEAD).seconds]
        for n, (one, k) in enumerate(zip(light, frames, strict=True))
        for rule in RULES
    }
    return {
        "devices": devices,
        "networks": {name: described(one, devices) for name, one in networks.items()},
        "light": [
            described(one, devices) | {"frames": k} for one, k in zip(light, frames, strict=True)
        ],
        "link": [
            {"bytes": one, "seconds": cost_model.exchange_seconds(LINK, one, devices)}
            for one in (2**12, 2**20)
            if devices > 1
        ],
        "times": times,
    }


def described(one, devices):
    return one._asdict() | {"groups": cost_model.balanced(one, devices)}


def rows_of(slower=1.0, given=None):
    return scaling.rows_of({n: made_up(n, slower) for n in (1, 2)}, SETTINGS, given)


def find(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_nothing_is_off_where_the_model_is_the_truth():
    rows = rows_of()
    measured = [row for row in rows if row["measured"] is not None]
    assert {(row["model"], row["devices"]) for row in measured} == {
        (name, n) for name in ("made_up", "8 equal", "one each") for n in (1, 2)
    }
    assert [row["error"] for row in measured] == pytest.approx([0] * len(measured), abs=1e-6)
    for row in rows:
        assert row["steps_per_second"] * (row["measured"] or row["predicted"]) == pytest.approx(1)


def test_what_is_off_is_said():
    """Everything took 1.25 times as long as predicted: 20% too little."""
    errors = [row["error"] for row in rows_of(slower=1.25) if row["error"] is not None]
    assert errors == pytest.approx([-0.2] * len(errors), abs=1e-6)
    assert errors


def test_strong_and_weak_scaling():
    rows = rows_of()
    deep = find(rows, model="64 equal", rule="sideways")
    assert [row["devices"] for row in deep] == [1, 2, 4, 8, 16, 32, 64]
    assert {row["frames"] for row in deep} == {512}
    assert [row["ideal_speedup"] for row in deep] == pytest.approx([1, 2, 4, 8, 16, 32, 64])
    speeds = [row["speedup_over_one_device"] for row in deep]
    assert speeds == sorted(speeds)
    assert speeds[-1] < 64
    assert deep[0]["limit"] == "devices"
    (last,) = find(rows, model="one each", rule="sideways", devices=64)
    assert last["depth"] == 64
    assert last["groups"] == [1] * 64
    # 64 modules of 10 ms, alone on one device, over one of them and what is added.
    x = cost_model.exchange_seconds(LINK, 1000, 64) + 2e-4 + 400e-9 + 500e-9 + 3e-3 / 512
    one = 0.64 + 2e-4 + 64 * 400e-9 + 63 * 500e-9 + 3e-3 / 512
    assert last["speedup_over_one_device"] == pytest.approx(one / (0.01 + x))
    assert last["share_of_ideal_speed"] == pytest.approx(0.01 / (0.01 + x))
    blocking = 512 * (0.64 + 127 * (x - 3e-3 / 512)) + 3e-3
    assert last["speedup_over_blocking"] == pytest.approx(blocking / (512 * (0.01 + x)))
    assert last["efficiency"] == pytest.approx(last["speedup_over_blocking"] / 64)


def test_the_links_of_the_user(tmp_path):
    rows = rows_of(given=scaling.given_link(100_000.0, None))
    slow = find(rows, link="given", model="64 equal", rule="sideways")
    assert {row["limit"] for row in slow if row["devices"] >= 8} == {"link"}
    assert (
        slow[0]["useful_devices"]
        < find(rows, link="measured", model="64 equal")[0]["useful_devices"]
    )
    assert not [row for row in rows if row["link"] == "given" and row["measured"] is not None]
    scaling.picture(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"devices": (1,)}, "--link_latency_us"),
        ({"frames": 30}, "needs 31"),
        ({"devices": (1000,)}, "lower --devices"),
        ({"stack": 2}, "--stack=2 must be at least 3"),
        ({"link_gigabytes_per_second": 0.0}, "must be more"),
    ],
)
def test_what_cannot_be_predicted_is_refused(changed, said):
    settings = {
        "model": "simple_cnn", "frames": 31, "devices": (2,), "forced": False, "stack": 16,
        "link_latency_us": None, "link_gigabytes_per_second": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        scaling.prepare(scaling.Settings(**settings | changed))


@pytest.mark.full
def test_suite_scaling(tmp_path):
    path = tmp_path / "scaling.json"
    done = run(
        "benchmark.py", "--suite=scaling", f"--json={path}", "--frames=11", "--batch=1", "--size=8",
        "--rounds=1", "--stack=3", timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    checked = [row for row in rows if row["error"] is not None]
    # Four rules of the model and three of each stack, on one and two devices.
    assert len(checked) == 20
    assert all(row["measured"] > 0 and row["predicted"] > 0 for row in checked)
    assert path.with_suffix(".png").stat().st_size > 5000
