"""The suite `chips`: what it refuses, and its picture."""

import pytest

from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.suites import chips
from experiments.benchmarks.suites.chips import Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "simple_cnn", "depths": (8,)}, "--depths=8: simple_cnn has 6 modules"),
        ({"model": "vgg8", "memory_frames": (14, 64)}, "14 frames are too few for the 8 modules"),
        ({"model": "vgg8", "size": 16}, "27x27"),
        ({"model": "vgg9"}, "did you mean 'vgg8'"),
    ],
)
def test_refused_before_anything_is_compiled(settings, said):
    with pytest.raises(ValueError, match=said):
        chips.prepare(Settings(**settings))


def test_cases_fit_the_chips_and_the_batch():
    names = [case.name for case in chips.cases(Settings(), "simple_cnn", 8)]
    assert "sideways depth_sharded 4x2" in names and "stream sideways depth_sharded 4x1" in names
    only = chips.cases(Settings(only="1f1b"), "vgg8", 8)
    assert only == [
        Case("backprop", "depth_sharded", "1f1b", depth=depth, data=8 // depth) for depth in (4, 8)
    ]
    for settings in ({"batch": 6}, {"depths": (3,)}):
        with pytest.raises(ValueError, match="does not fit 8 chips"):
            chips.cases(Settings(**settings), "vgg8", 8)
    assert len(chips.cases(Settings(batch=1), "vgg8", 1)) == 6  # One chip: nothing is divided.


@pytest.mark.parametrize("timed", [True, False])
def test_picture(tmp_path, timed):
    def row(name, steps):
        times = dict.fromkeys(("branch_us_adj", "rest_us_adj"), 100.0 if steps else None)
        times |= {"ms_adj": 9.0, "ms_xla": 12.0, "outside_ms_adj": 2.6}
        return {
            "model": "vgg8", "name": name, "topology": "v5e:2x4", "frames": 64, "size": 112,
            "dtype": "bfloat16", "steps": steps,
            "temporary_bytes_by_frames": {64: 10**7, 16: 10**7, 256: 4 * 10**7},
            **{name: value if timed else None for name, value in times.items()},
        }  # fmt: skip

    chips.picture([row("a pipeline", 64), row("all at once", None)], tmp_path / "chips.png")
    assert (tmp_path / "chips.png").stat().st_size > 5000
