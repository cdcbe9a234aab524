"""Streams in chunks of K steps, the batches of a train step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data import BadVideo, Streams


class Chunks:
    """An iterator over `{"frames": uint8 [B, K, H, W, 3], "reset": bool [B, K], "playing": bool
    [B, K]}`; a stream that has ended before others is not playing.
    "targets" are there as well, like the frames, if the streams have them.

    It ends with the first stream that ends, without an incomplete last chunk; with `keep_rest` it
    ends with the last stream, and nothing is left out. A source that fails after the first chunk
    ends the iteration, and `failure` holds its error.
    """

    def __init__(self, streams: Streams, num_frames: int, *, keep_rest: bool = False):
        self._streams, self._num_frames, self._keep_rest = streams, num_frames, keep_rest
        self._delivered = False
        self.failure: BadVideo | None = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self.failure is not None:
            raise StopIteration
        steps = []
        try:
            for _ in range(self._num_frames):
                one = next(self._streams, None)
                if one is None or (not self._keep_rest and (one["stream"] < 0).any()):
                    break
                steps.append(one)
        except BadVideo as failure:
            if not self._delivered:
                raise
            self.failure = failure
        if not steps or (len(steps) < self._num_frames and not self._keep_rest):
            raise StopIteration
        self._delivered = True
        chunk = {name: np.stack([one[name] for one in steps], axis=1) for name in steps[0]}
        stream = chunk.pop("stream")
        return chunk | {"playing": stream >= 0}

    def get_state(self) -> dict[str, Any]:
        """The position of the next chunk."""
        return self._streams.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to the position of the state."""
        self._streams.set_state(state)

    def start_prefetch(self) -> None:
        """Frames are made ahead from the first one on; nothing to start."""

    def close(self) -> None:
        """Ends the threads that make frames."""
        self._streams.close()
