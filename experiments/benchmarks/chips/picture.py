"""The picture of the suite `chips`: time and memory of every execution."""

from __future__ import annotations

from typing import Any

PARTS = (  # of the time, and their colours
    ("largest device's modules", "tab:orange"),
    ("rest of the steps", "tab:grey"),
    ("outside of the steps", "tab:blue"),
)


def draw(result: list[dict[str, Any]], path: str) -> None:
    """Bars of milliseconds for a clip (or 64 frames of a stream) and of temporary memory; a PNG.

    Bars are the estimate `adj`, the marks on the right `xla`.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in result))
    most = max(sum(row["model"] == one for row in result) for one in models)
    figure = Figure(figsize=(12, (0.32 * most + 1.1) * len(models)), layout="constrained")
    plots = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), model in zip(plots, models, strict=True):
        rows = [row for row in result if row["model"] == model]
        names = [row["name"] for row in rows]
        _times(left, names, rows)
        _memory(right, names, rows)
        left.set_title(model, loc="left", fontsize=10)
    plots[0][0].legend(fontsize=8)
    plots[0][1].legend(fontsize=8)
    first = result[0]
    settings = f"{first['topology']}, K = {first['frames']}, {first['size']}x{first['size']}"
    figure.suptitle(f"{settings}, {first['dtype']}; compiled, not run", fontsize=10)
    figure.savefig(path, dpi=90)


def _times(axes, names: list[str], rows: list[dict]) -> None:
    timed = [(k, row) for k, row in enumerate(rows) if row["ms_adj"] is not None]
    for k, row in timed:
        steps = row["steps"] or 0
        widths = [
            (row["branch_us_adj"] or 0) * steps / 1e3,
            (row["rest_us_adj"] or 0) * steps / 1e3,
            row["outside_ms_adj"],
        ]
        left = 0.0
        for width, (label, colour) in zip(widths, PARTS, strict=True):
            shown = label if k == timed[0][0] else None
            axes.barh(k, width, left=left, color=colour, label=shown)
            left += width
    xla = [row["ms_xla"] for _, row in timed]
    axes.plot(xla, [k for k, _ in timed], "k|", markersize=9, label="xla")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.grid(axis="x", alpha=0.25)


def _memory(axes, names: list[str], rows: list[dict]) -> None:
    counts = list(dict.fromkeys(k for row in rows for k in row["temporary_bytes_by_frames"]))
    height = 0.8 / len(counts)
    for number, count in enumerate(sorted(counts)):
        found = [(k, row["temporary_bytes_by_frames"].get(count)) for k, row in enumerate(rows)]
        at, values = zip(*((k, v / 1e6) for k, v in found if v is not None), strict=True)
        where = [k + (number - (len(counts) - 1) / 2) * height for k in at]
        axes.barh(where, values, height, label=f"K = {count}")
    axes.set_yticks(range(len(names)), [""] * len(names))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("temporary memory of a device, MB")
    axes.grid(axis="x", alpha=0.25)
