"""Clock tables: which frame every stage works on at every step.

A stage is what runs on one device: a module, or several. A table is plain data, made here and
followed by the executions: at step t stage n runs its forward pass on frame `forward[t, n]` and
back-propagates the loss of frame `backward[t, n]`, -1 for neither. Signals take one step from a
stage to the next, so that in every table `forward[t, n] == forward[t-1, n-1]` and
`backward[t, n] == backward[t-1, n+1]` wherever they are not -1.

All indices are 0-based; the paper's Figures 2 and 3 count from 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sideways_jax.tools.names import check_name


class ClockTable(NamedTuple):
    """What every stage does at every step."""

    name: str
    forward: np.ndarray  # int32[T, N], the frame of the forward pass, -1 for none
    backward: np.ndarray  # int32[T, N], the frame whose loss is back-propagated, -1 for none
    stash: int  # how many inputs a stage has to keep at most, its current one included

    @property
    def num_steps(self) -> int:
        """T."""
        return self.forward.shape[0]

    @property
    def num_stages(self) -> int:
        """N."""
        return self.forward.shape[1]


class Schedule(NamedTuple):
    """The order of backprop's passes, and what a stage keeps; Sideways has none."""

    name: str | None = None  # "blocking", "gpipe" or "1f1b"
    recompute: bool = True  # keep inputs and run forward passes again, rather than keep residuals


def sideways(num_frames: int, depth: int) -> ClockTable:
    """Sideways (section 3.4): every module works at every step, on whatever is there.

    At step t module i holds frame t-i, and back-propagates the loss of frame t-2(D-1)+i through
    that. Unlike in the other tables the two differ: the pseudo-gradient of module i is
    2(D-1-i) frames older than its activation. K steps, as many as frames arrive.

    >>> print(text(sideways(num_frames=6, depth=3)))
    step    1    2    3
       1  1/-  -/-  -/-
       2  2/-  1/-  -/-
       3  3/-  2/-  1/1
       4  4/-  3/1  2/2
       5  5/1  4/2  3/3
       6  6/2  5/3  4/4
    """
    step, module = np.ogrid[:num_frames, :depth]
    forward = step - module
    backward = step - 2 * (depth - 1) + module
    return ClockTable("sideways", _clear(forward), _clear(backward), stash=1)


def blocking(num_frames: int, num_stages: int) -> ClockTable:
    """The paper's baseline: a frame goes all the way up and down, all other stages wait.

    Every frame takes an update cycle of 2N-1 steps (section 3.2): K(2N-1) in all.
    """
    cycle = 2 * num_stages - 1
    step, stage = np.ogrid[: num_frames * cycle, :num_stages]
    frame, position = np.divmod(step, cycle)
    forward = np.where(position == stage, frame, -1)
    backward = np.where(position == cycle - 1 - stage, frame, -1)
    return ClockTable("blocking", _clear(forward), _clear(backward), stash=1)


def gpipe(num_frames: int, num_stages: int) -> ClockTable:
    """GPipe: the frames of a clip as micro-batches, all forward, then all backward, last first.

    2(K+N-1)-1 steps, and all K inputs kept.
    """
    turn = num_frames + num_stages - 2  # the step at which the top stage turns around
    step, stage = np.ogrid[: 2 * turn + 1, :num_stages]
    forward = step - stage
    backward = (2 * turn - stage) - step
    forward = np.where(forward < num_frames, forward, -1)
    backward = np.where((step >= turn) & (backward < num_frames), backward, -1)
    return ClockTable("gpipe", _clear(forward), _clear(backward), stash=num_frames)


def one_forward_one_backward(num_frames: int, num_stages: int) -> ClockTable:
    """1F1B: once the pipeline is full every stage does one forward and one backward pass a step.

    Sideways with a FIFO: a stage keeps its last 2(N-1-n)+1 inputs and linearises at the oldest, so
    that gradients are exact and memory does not depend on K. K+2(N-1) steps.
    """
    step, stage = np.ogrid[: num_frames + 2 * (num_stages - 1), :num_stages]
    forward = step - stage
    backward = step - 2 * (num_stages - 1) + stage
    forward = np.where(forward < num_frames, forward, -1)
    backward = np.where(backward < num_frames, backward, -1)
    stash = min(2 * num_stages - 1, num_frames)
    return ClockTable("1f1b", _clear(forward), _clear(backward), stash)


_TABLES = {"blocking": blocking, "gpipe": gpipe, "1f1b": one_forward_one_backward}
SCHEDULES = tuple(_TABLES)  # of exact backprop; Sideways is its own


def make(name: str | None, num_frames: int, num_stages: int) -> ClockTable:
    """The table of a schedule of backprop: "blocking", "gpipe" or "1f1b".

    Raises:
      ValueError: for another name, or none; it says which is closest.
    """
    return _TABLES[check_name("schedule", name, SCHEDULES)](num_frames, num_stages)


def check(table: ClockTable) -> None:
    """Raises ValueError unless the table can be executed.

    Every frame passes every stage once in each direction, one step after its neighbour, backward
    not before forward, and no stage has to keep more than `stash` inputs.
    """
    num_frames = int(table.forward.max()) + 1
    frames = np.arange(num_frames)
    up = np.stack([_steps_of(table.forward[:, n], num_frames) for n in range(table.num_stages)])
    down = np.stack([_steps_of(table.backward[:, n], num_frames) for n in range(table.num_stages)])
    if (np.diff(up, axis=0) != 1).any() or (np.diff(down, axis=0) != -1).any():
        raise ValueError(f"schedule {table.name}: a signal does not arrive one step after it left")
    if (down < up).any():
        raise ValueError(f"schedule {table.name}: a frame goes back before it came")
    for n in range(table.num_stages):
        for frame in frames:
            kept = ((up[n] <= down[n, frame]) & (down[n] >= down[n, frame])).sum()
            if kept > table.stash:
                raise ValueError(
                    f"schedule {table.name}: stage {n} keeps {kept} inputs, more than {table.stash}"
                )


def text(table: ClockTable) -> str:
    """The table as text, frames and stages counted from 1 as in the paper: forward/backward."""
    width = 2 * len(str(table.forward.max() + 1)) + 1

    def cell(forward: int, backward: int) -> str:
        return "/".join(str(frame + 1) if frame >= 0 else "-" for frame in (forward, backward))

    head = "".join(f"  {n + 1:>{width}}" for n in range(table.num_stages))
    lines = [f"step{head}"]
    for t in range(table.num_steps):
        cells = zip(table.forward[t], table.backward[t], strict=True)
        lines.append(f"{t + 1:>4}" + "".join(f"  {cell(*pair):>{width}}" for pair in cells))
    return "\n".join(lines)


def _clear(frames: np.ndarray) -> np.ndarray:
    return np.where(frames >= 0, frames, -1).astype(np.int32)


def _steps_of(column: np.ndarray, num_frames: int) -> np.ndarray:
    steps = np.full(num_frames, -1)
    for frame in range(num_frames):
        (when,) = np.nonzero(column == frame)
        if len(when) != 1:
            raise ValueError(f"frame {frame} is worked on {len(when)} times by one stage, not once")
        steps[frame] = when[0]
    return steps
