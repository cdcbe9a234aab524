import io
import time

import pytest
from rich.console import Console

from experiments.terminal.progress import Clock, Progress


def test_clock_counts_only_while_it_runs():
    clock = Clock()
    clock.count()  # The first step, with compilation: not yet started.
    assert clock.steps_per_second is None
    clock.start()
    for _ in range(4):
        time.sleep(0.02)
        clock.count()
    clock.stop()
    time.sleep(0.3)
    clock.count()
    speed = clock.steps_per_second
    assert speed == clock.steps_per_second  # It stands still.
    assert 4 / 0.3 < speed < 4 / 0.08


def test_lines_without_a_terminal():
    out = io.StringIO()
    with Progress(Console(file=out), start=0, num_steps=5, line_every=2) as progress:
        for step in range(1, 6):
            progress.update(step, {"loss": 0.25, "accuracy": 0.5}, 2.0)
    assert out.getvalue().splitlines() == [
        "step 2/5  loss 0.25  accuracy 0.5  2 steps/s  0:00:02 left",
        "step 4/5  loss 0.25  accuracy 0.5  2 steps/s  0:00:00 left",
        "step 5/5  loss 0.25  accuracy 0.5  2 steps/s  0:00:00 left",
    ]


@pytest.mark.parametrize(("speed", "shown"), [(2.0, "2 steps/s  0:00:02 left"), (None, "? left")])
def test_a_bar_in_a_terminal(speed, shown):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Progress(console, start=0, num_steps=5, line_every=2) as progress:
        progress.update(1, {"loss": 0.25, "accuracy": 0.5}, speed)
    assert "loss 0.25  accuracy 0.5" in out.getvalue()
    assert shown in out.getvalue()
    assert "1/5" in out.getvalue()
