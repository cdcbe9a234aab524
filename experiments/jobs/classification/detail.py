"""An evaluation in detail: per class, which classes are confused, and how sure is how right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.jobs.classification import scores
from experiments.jobs.classification.accuracy import Evaluation
from experiments.terminal.names import draw_plainly, printable
from experiments.workdir.files import write_atomically

SHOWN_CLASSES = 40  # rows of the table, those with the most errors
NAMED_CLASSES = 60  # whose names fit beside the picture


def write(evaluation: Evaluation, classes: Sequence[str], folder: Path) -> None:
    """Writes `evaluation.json`, `calibration.png` and, of one class to a video, `confusion.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    result = evaluation.metrics() | {"classes": per_class(evaluation, classes)}
    if evaluation.labels.ndim == 1:
        matrix = scores.confusion(evaluation.probabilities, evaluation.labels)
        result["confusion"] = matrix.tolist()  # rows are true, columns predicted
        draw_confusion(matrix, classes).savefig(folder / "confusion.png")
    draw_calibration(evaluation).savefig(folder / "calibration.png")
    write_atomically(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")


def per_class(evaluation: Evaluation, classes: Sequence[str]) -> list[dict]:
    """For every class its name, how many videos have it, and how well it is recognised.

    "accuracy" is the fraction of its videos that are recognised, None without any, and "taken_for"
    the class that most of the others are taken for; with several classes to a video, it has
    "average_precision" instead.
    """
    labels = evaluation.labels
    if labels.ndim == 2:
        precisions = scores.average_precisions(evaluation.probabilities, labels)
        return [
            {"name": name, "videos": int(videos),
             "average_precision": None if np.isnan(precision) else float(precision)}
            for name, videos, precision in zip(classes, labels.sum(axis=0), precisions, strict=True)
        ]  # fmt: skip
    rows = []
    matrix = scores.confusion(evaluation.probabilities, labels)
    for n, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        others = np.where(np.arange(len(row)) == n, 0, row)
        rows.append(
            {
                "name": name,
                "videos": int(row.sum()),
                "accuracy": float(row[n] / row.sum()) if row.sum() else None,
                "taken_for": classes[others.argmax()] if others.any() else None,
            }
        )
    return rows


def print_tables(evaluation: Evaluation, classes: Sequence[str], console: Console) -> None:
    """Prints the numbers over all videos, and those of each class, the worst first."""
    metrics = evaluation.metrics()
    names = {"accuracy": "top-1", "top5": "top-5", "mean_average_precision": "mAP",
             "loss": "NLL", "ece": "ECE"}  # fmt: skip
    _print(console, {shown: _number(metrics[name], name) for name, shown in names.items()
                     if name in metrics} | {"videos": f"{metrics['videos']}",
                                            "frames": f"{metrics['frames']:,}"})  # fmt: skip
    rows = [row for row in per_class(evaluation, classes) if row["videos"]]
    key = "accuracy" if evaluation.labels.ndim == 1 else "average_precision"
    rows.sort(key=lambda row: row[key])
    for row in rows:
        row["name"], row[key] = printable(row["name"]), _number(row[key], key)
        row["taken_for"] = printable(row.get("taken_for") or "")
    table = _table([("class", "left"), ("videos", "right"), (key.replace("_", " "), "right"),
                    ("most often taken for", "left")][: 4 if key == "accuracy" else 3])  # fmt: skip
    for row in rows[:SHOWN_CLASSES]:
        cells = row["name"], str(row["videos"]), row[key], row["taken_for"]
        table.add_row(*cells[: len(table.columns)])
    console.print()
    console.print(table, markup=False)
    if len(rows) > SHOWN_CLASSES:
        console.print(f"and {len(rows) - SHOWN_CLASSES} classes that are recognised better")


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draws which fraction of each class (a row) is taken for which.

    Args:
      matrix: int `[C, C]` of `scores.confusion`.
      classes: the names.
    """
    count = len(classes)
    side = float(np.clip(0.3 * count, 3, 14))
    figure = Figure(figsize=(side + 2, side + 1.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="fraction of the true class", shrink=0.7)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= NAMED_CLASSES:
        shown = [_short(name) for name in classes]
        axes.set_xticks(range(count), shown, rotation=90)
        axes.set_yticks(range(count), shown)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            draw_plainly(label)
    if count <= 20:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = fractions[row, column] > 0.5
            axes.text(
                column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7,
                color="white" if dark else "black",
            )  # fmt: skip
    return figure


def draw_calibration(evaluation: Evaluation) -> Figure:
    """Draws how many predictions of each confidence are right: ideally as many as it says."""
    confidences, right = scores.outcomes(evaluation.probabilities, evaluation.labels)
    edges = np.linspace(0, 1, scores.BINS + 1)
    places = np.minimum((confidences * scores.BINS).astype(int), scores.BINS - 1)
    counts = np.bincount(places, minlength=scores.BINS)
    hits = np.bincount(places, right, minlength=scores.BINS)
    figure = Figure(figsize=(4.6, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    there = counts > 0
    width = 1 / scores.BINS
    upper.bar(
        edges[:-1][there], hits[there] / counts[there], width, align="edge", color="#0072B2",
        edgecolor="white",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    error = scores.calibration_error(evaluation.probabilities, evaluation.labels)
    upper.set_title(f"expected calibration error {error:.3f}", fontsize=10)
    lower.bar(edges[:-1], counts, width, align="edge", color="#999999", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="predictions")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _number(value: float, name: str) -> str:
    return f"{value:.3f}" if name in ("loss", "ece") else f"{100 * value:.1f}%"


def _print(console: Console, row: dict[str, str]) -> None:
    table = _table([(name, "right") for name in row])
    table.add_row(*row.values())
    console.print()
    console.print(table)


def _table(columns: Sequence[tuple[str, str]]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name, justify in columns:
        table.add_column(name, justify=justify)
    return table


def _short(name: str, length: int = 20) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"
