"""What a run writes down while it goes: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
    """Yields the lines of a `metrics.jsonl`.

    Left out are lines that are damaged, and a last one that a killed run cut off.
    """
    return (line for _, line in _numbered(file) if line is not None)


def _numbered(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the number of every whole line, from 1, and what is in it; None if it is damaged."""
    if not file.exists():
        return
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith("\n"):
                yield number, _parsed(line)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
        return values if isinstance(values["step"], int) and values["split"] else None
    except (ValueError, TypeError, KeyError):
        return None


class MetricsLog:
    """Appends to `metrics.jsonl`, and writes the same numbers for TensorBoard.

    A resumed run continues the file as if it had never stopped: lines after the step that it goes
    on from are dropped, they will be written again. The file has no times in it, so that two runs
    of the same experiment give the same file. (How fast they were is in TensorBoard.)

    Args:
      workdir: the directory of the run.
      step: the step that training goes on from.

    Attributes:
      damage: what is lost of an earlier session; None if nothing is.
    """

    def __init__(self, workdir: Path, step: int):
        self._file = workdir / "metrics.jsonl"
        self.damage = self._set_damage_aside()
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

    def _set_damage_aside(self) -> str | None:
        """Copies a damaged file, and says which lines are lost."""
        damaged = [str(number) for number, line in _numbered(self._file) if line is None]
        if not damaged:
            return None
        copy = self._file.with_suffix(".damaged")
        shutil.copyfile(self._file, copy)
        return (
            f"{self._file}: {'line' if len(damaged) == 1 else 'lines'} {', '.join(damaged)} cannot "
            f"be read, and {'is' if len(damaged) == 1 else 'are'} left out; {copy.name} has the "
            "file as it was. Nothing else is lost."
        )

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
