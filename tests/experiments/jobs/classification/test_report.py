import io
import os

import numpy as np
import pytest
from rich.console import Console

from experiments.jobs.classification import report
from experiments.jobs.classification.accuracy import ShownClip


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def clip(label, predicted, num_frames=16):
    frames = np.zeros((num_frames, 6, 6, 3), np.uint8)
    frames[..., 0] = np.linspace(100, 250, num_frames).astype(np.uint8)[:, None, None]
    return ShownClip(frames, label, np.eye(3)[predicted] * 0.8 + 0.05)


def test_clips_show_frames_in_order_and_say_what_is_wrong():
    figure = report.draw_clips([clip(0, 0), clip(1, 2, num_frames=3)], ["zero", "one", "two"])
    [axes] = figure.axes
    mosaic = axes.images[0].get_array()
    size = 6 + 1  # of a frame and the gap after it
    centres = mosaic[3::size, 3::size]
    assert centres.shape[:2] == (2, report.SHOWN_FRAMES)
    red = centres[..., 0].tolist()
    assert red[0] == sorted(red[0])
    assert (red[0][0], red[0][-1]) == (100, 250)
    assert red[1][:3] == [100, 175, 250]
    assert (centres[0, :, 1] == 0).all()
    assert (centres[1, 3:] == 255).all()  # A clip of three frames has no more to show.
    said = [text.get_text() for text in axes.texts]
    assert said == [
        "✓ predicted: zero (85%)\n    true: zero",
        "✗ predicted: two (85%)\n    true: one",
    ]
    assert pixels(figure).std() > 10


def test_curves_have_every_point():
    lines = [{"step": s, "split": "train", "loss": 3 / s, "accuracy": s / 9} for s in (1, 2, 3)]
    lines += [{"step": s, "split": "test", "loss": 1.0, "accuracy": 0.5} for s in (2, 3)]
    figure = report.draw_curves(lines, "title")
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        train, test = axes.lines
        assert train.get_xydata().tolist() == [[s, lines[s - 1][name]] for s in (1, 2, 3)]
        assert test.get_xdata().tolist() == [2, 3]
    assert pixels(figure).std() > 10


@pytest.mark.parametrize(("accuracy", "speed", "shown"), [(0.955, 4.25, "95.5%"), (None,) * 3])
def test_table(accuracy, speed, shown):
    out = io.StringIO()
    console = Console(file=out, width=200)
    summary = report.Summary("sideways", "scan", 800, accuracy, speed, "/tmp/somewhere")
    report.print_table(summary, console)
    words = out.getvalue().split()
    for word in ("sideways", "scan", "800", "/tmp/somewhere"):
        assert word in words
    if shown:
        assert shown in words
        assert "4.25" in words
    else:
        assert words.count("-") == 4  # Neither NLL nor ECE.


def test_names_of_any_characters_are_drawn_as_they_are():
    """Dollars are no formula; bytes that are not UTF-8, and what no font has, become numbers."""
    names = ["$x^2$ [red]", os.fsdecode(b"r\xfcn"), "\U00100000走"]
    figure = report.draw_clips([clip(n, n) for n in range(3)], names)
    assert pixels(figure).std() > 10  # Matplotlib would raise, or warn of missing glyphs.
    said = [text.get_text().splitlines()[1].strip() for text in figure.axes[0].texts]
    assert said[:2] == ["true: $x^2$ [red]", r"true: r\xfcn"]
    assert said[2].startswith(r"true: \U00100000")
