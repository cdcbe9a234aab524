"""What a run writes down while it goes: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter


def read(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a `metrics.jsonl`; a last line that a killed run cut off is left out."""
    if not file.exists():
        return
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


class MetricsLog:
    """Appends to `metrics.jsonl`, and writes the same numbers for TensorBoard.

    A resumed run continues the file as if it had never stopped: lines after the step that it goes
    on from are dropped, they will be written again. The file has no times in it, so that two runs
    of the same experiment give the same file. (How fast they were is in TensorBoard.)

    Args:
      workdir: the directory of the run.
      step: the step that training goes on from.
    """

    def __init__(self, workdir: Path, step: int):
        self._file = workdir / "metrics.jsonl"
        kept = [line for line in read(self._file) if line["step"] <= step]
        self.evaluated = {line["step"] for line in kept if line["split"] == "test"}
        workdir.mkdir(parents=True, exist_ok=True)
        new = workdir / ".metrics.jsonl.new"
        new.write_text("".join(map(_dump, kept)), encoding="utf-8")
        os.replace(new, self._file)
        with contextlib.ExitStack() as stack:
            self._lines = stack.enter_context(open(self._file, "a", encoding="utf-8"))
            # TensorBoard hides what an earlier run wrote from this step on.
            purge = {"purge_step": step + 1} if step else {}
            self._writer = SummaryWriter(os.fspath(workdir / "tensorboard"), **purge)
            stack.callback(self._writer.close)
            self._close = stack.pop_all().close

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error) -> None:
        self._close()

    def write(self, step: int, split: str, metrics: dict[str, float], **unrepeatable: float):
        """Writes one line; `unrepeatable` numbers, such as speeds, go to TensorBoard alone."""
        self._lines.write(_dump({"step": step, "split": split, **metrics}))
        self._lines.flush()
        if split == "test":
            self.evaluated.add(step)
        for name, value in (metrics | unrepeatable).items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def write_clips(self, name: str, frames: np.ndarray, step: int, *, shown: int = 8):
        """Draws clips `uint8 [B, K, H, W, 3]` as one picture: a row a clip, some of its frames."""
        clips, num_frames = frames.shape[:2]
        columns = np.linspace(0, num_frames - 1, min(shown, num_frames)).astype(int)
        grid = frames[: min(shown, clips), columns]
        grid = np.pad(grid, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=128)
        rows = np.concatenate(np.moveaxis(grid, 1, 0), axis=2)  # Frames side by side: [B, H, W, 3].
        self._writer.add_image(name, np.concatenate(rows), step, dataformats="HWC")

    def flush(self) -> None:
        """Puts what was written on the disk, where it survives a crash."""
        os.fsync(self._lines.fileno())
        self._writer.flush()


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
