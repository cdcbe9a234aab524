"""What a run writes down while it goes: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

_FLUSH_SECONDS = 10.0  # from one time that TensorBoard can see more to the next


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
            self._events = _Events(workdir / "tensorboard", step)
            stack.callback(self._events.close)
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
            self._events.add(summary.scalar(f"{split}/{name}", value), step)

    def write_clips(self, name: str, frames: np.ndarray, step: int, *, shown: int = 8):
        """Draws clips `uint8 [B, K, H, W, 3]` as one picture: a row a clip, some of its frames."""
        clips, num_frames = frames.shape[:2]
        columns = np.linspace(0, num_frames - 1, min(shown, num_frames)).astype(int)
        grid = frames[: min(shown, clips), columns]
        grid = np.pad(grid, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=128)
        rows = np.concatenate(np.moveaxis(grid, 1, 0), axis=2)  # Frames side by side: [B, H, W, 3].
        self._events.add(summary.image(name, np.concatenate(rows), dataformats="HWC"), step)

    def flush(self) -> None:
        """Puts what was written on the disk, where it survives a crash."""
        os.fsync(self._lines.fileno())
        self._events.flush()


class _Events:
    """An event file of TensorBoard, written by the thread that calls.

    The `SummaryWriter` of tensorboardX writes in a thread of its own. When the disk is full that
    thread dies, and the caller waits for ever.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not any(folder.iterdir())
        self._writer = EventsWriter(os.fspath(folder / "events"))
        if not is_new:  # TensorBoard hides what an earlier run wrote from this step on.
            first = step + 1 if step else 0
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=start))
        self._flushed = time.monotonic()

    def add(self, what: Any, step: int) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=what))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
