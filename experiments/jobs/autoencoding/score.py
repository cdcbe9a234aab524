"""Streaming evaluation: at every step the newest output is compared with the frame of that step.

This is the evaluation of streaming perception, and the "fair(er) asynchronous evaluation": a late
output is compared with the frame that has arrived meanwhile. The compensated error compares it with
the frame that it belongs to, without the delay.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax.models.autoencoder import PIXEL_RANGE, pixels
from sideways_jax.stream import Outputs

_KEPT = 16  # frames at least: blocking backprop with D = 6 modules is 15 steps late
_PATIENCE = 8


class Scores(NamedTuple):
    """The result over a stream, or several; errors are mean squares, with black 0 and white 1."""

    streaming_mse: float  # the output shown at each step against the frame of that step
    compensated_mse: float  # the same outputs against the frames that they belong to
    mean_lag: float  # steps from a frame to a step at which its output is shown
    max_lag: int
    frames: int  # that arrived, over all streams
    frames_used: int  # whose output was shown
    frames_dropped: int  # whose output was not shown, although that of a later frame was


class StreamScore:
    """Adds up the scores of chunk after chunk.

    Frames are kept for as long as an output may still come that is of them: what a stream shows
    does not go back. A stream that shows nothing, for it is over or begins anew, keeps those of the
    time since then, up to `_PATIENCE` times the longest lag so far.

    Args:
      pixel_range: the outputs for black and for white.
      first_frame: the number of the first frame that will be added; outputs of frames before it are
        left out, so add the steps before the first that counts, as not playing.
      count_missing: whether a step without any output counts as a black one; by default it does not
        count.
    """

    def __init__(
        self,
        pixel_range: tuple[float, float] = PIXEL_RANGE,
        *,
        count_missing: bool = False,
        first_frame: int = 0,
    ):
        self._count_missing = count_missing
        self._pixel_range = tuple(pixel_range)
        self._first_frame = self._next_frame = self._kept_from = first_frame
        self._longest_lag = -1  # so far; -1: nothing was shown yet
        # Made from the first chunk; of every stream:
        self._past: np.ndarray | None = None
        self._last_shown: np.ndarray | None = None
        self._showing: np.ndarray | None = None  # whether it showed something at the last step
        self._oldest: np.ndarray | None = None  # the first frame that it may still show
        self._streaming, self._compensated = [], []
        self._lags: list[np.ndarray] = []
        self._used = self._dropped = self._arrived = 0

    def add(self, outputs: Outputs, frames: np.ndarray, playing: np.ndarray | None = None) -> None:
        """Adds K steps of B streams.

        Args:
          outputs: `[K, B, H, W, 3]`, with the numbers of their frames.
          frames: what arrived, uint8 `[K, B, H, W, 3]`.
          playing: bool `[K, B]`, False where nothing counts: a stream of the batch is over, or
            scoring has not begun (chunks have to be added all the same, for outputs that are late).

        Raises:
          ValueError: for an output of a frame that was given up.
        """
        frames = np.asarray(frames)
        num_frames, batch = frames.shape[:2]
        if self._past is None:
            self._past = np.zeros((_KEPT, *frames.shape[1:]), frames.dtype)
            self._last_shown = np.full(batch, -1)
            self._oldest = np.full(batch, self._first_frame)
            self._showing = np.zeros(batch, bool)
        shown = np.asarray(outputs.frames)
        shown = np.where(shown >= self._first_frame, shown, -1)
        now = self._next_frame + np.arange(num_frames)[:, None]
        latest = int(np.where(shown >= 0, now - shown, -1).max())
        if (gone := (shown >= 0) & (shown < self._kept_from)).any():
            raise ValueError(
                f"an output is of frame {shown[gone][0]}, and frames before {self._kept_from} are "
                "given up: what a stream shows must not go back"
            )
        self._longest_lag = max(self._longest_lag, latest)
        streaming, compensated = _errors(
            outputs.outputs, shown, frames, self._past, self._next_frame,
            self._pixel_range,
        )  # fmt: skip
        self._keep(frames, shown)
        playing = np.ones(shown.shape, bool) if playing is None else playing
        shown = np.where(playing, shown, -1)
        valid = shown >= 0
        scored = playing if self._count_missing else valid
        self._streaming.append(np.asarray(streaming, np.float64)[scored])
        self._compensated.append(np.asarray(compensated, np.float64)[valid])
        self._lags.append((now - shown)[valid])
        for row in shown:
            fresh = (row >= 0) & (row != self._last_shown)
            self._used += int(fresh.sum())
            follows = fresh & (self._last_shown >= 0)
            self._dropped += int((row - self._last_shown - 1)[follows].sum())
            # Kept while nothing is shown: what was lost before a restart is lost, too.
            self._last_shown = np.where(row >= 0, row, self._last_shown)
        self._arrived += int(playing.sum())

    def _keep(self, frames: np.ndarray, shown: np.ndarray) -> None:
        """Goes to the next chunk, with what it may still show of the past and of `frames`.

        How many they are grows by factors of two: each number is compiled for.
        """
        for step, row in enumerate(shown, self._next_frame):
            # From one output to none: of another stream the first frame is that of now.
            stopped = (row < 0) & self._showing
            self._oldest = np.where(row >= 0, row, np.where(stopped, step, self._oldest))
            self._showing = row >= 0
        following = self._next_frame + len(frames)
        oldest = self._oldest.min(initial=following)
        if self._longest_lag >= 0:
            oldest = max(oldest, following - _PATIENCE * (self._longest_lag + 1))
        kept = len(self._past)
        while kept < following - oldest:
            kept *= 2
        both = np.concatenate([self._past, frames])
        missing = np.zeros((max(0, kept - len(both)), *both.shape[1:]), both.dtype)
        self._past = np.concatenate([missing, both[max(0, len(both) - kept) :]])
        self._next_frame = following
        self._kept_from = max(self._kept_from, following - kept)

    def result(self) -> Scores | None:
        """The scores so far; None if nothing was shown yet."""
        lags = np.concatenate(self._lags) if self._lags else np.empty(0)
        if not lags.size:
            return None
        return Scores(
            streaming_mse=float(np.concatenate(self._streaming).mean()),
            compensated_mse=float(np.concatenate(self._compensated).mean()),
            mean_lag=float(lags.mean()),
            max_lag=int(lags.max()),
            frames=self._arrived,
            frames_used=self._used,
            frames_dropped=self._dropped,
        )


@functools.partial(jax.jit, static_argnums=5)
def _errors(outputs, shown, frames, past, first_frame, pixel_range):
    """Squared errors `[K, B]` against the frames of now, and against those that were shown."""
    known = jnp.concatenate([past, frames])
    place = jnp.clip(shown - first_frame + past.shape[0], 0, known.shape[0] - 1)
    low, high = pixel_range

    def error(output, frame):
        difference = (output - pixels(frame, pixel_range, output.dtype)) / (high - low)
        return jnp.mean(jnp.square(difference), axis=(1, 2, 3))

    def of_step(inputs):  # Step after step: a chunk of large frames is large.
        output, is_shown, frame, where = inputs
        # What is not there is black.
        output = jnp.where(is_shown[:, None, None, None], output, jnp.full_like(output, low))
        own = known[where, jnp.arange(known.shape[1])]
        return error(output, frame), error(output, own)

    return jax.lax.map(of_step, (outputs, shown >= 0, frames, place))
