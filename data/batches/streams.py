"""Batches of endless or finite streams of frames, one frame of each stream a step.

A batch has B slots. Every slot plays one stream after the other: scenes, parts of a file, a camera.
What there is to play is a `Programme`; which frame of it each slot is at, in which threads it is
made ahead of time, and how a run goes on where it stopped is decided here, for all of them.

Nothing here needs JAX.
"""

import collections
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from data.video import decoding
from data.workers import ahead

Batch = dict[str, np.ndarray]


class Piece(NamedTuple):
    """One stream that a slot plays: `first`, `first + stride`, ... of something."""

    stream: int  # its number, from 0
    first: int  # its first frame
    num_frames: int | None  # how many it has; None: until it ends


class Programme(NamedTuple):
    """What the slots of a batch play.

    Attributes:
      batch_size: B, the number of slots.
      size: height and width of the frames, pixels.
      piece: (slot, number) -> the number-th stream of a slot, from 0, or None after its last one.
      frames: (piece, start) -> its frames from the start-th on, uint8 [size, size, 3] each. A None
        among them is a sign of life of something that takes long.
      num_steps: how many batches there are, if that is known; None: without end, or not known.
      stall_seconds: how long to wait for a frame or a sign of life; None: for ever.
      name: of the source, for messages.
      live: whether it cannot be wound back, such as a camera.
      ahead: how many frames of every slot are made before they are asked for, at least 1.
      what: everything that the frames depend on, JSON-able; a state belongs to one such thing. Its
        "path" may change if it has "content", which says what is there.
      future: every frame has a target, the frame so many steps later; 0: there are no targets.
        `frames` has to give so many frames more than a piece has.
    """

    batch_size: int
    size: int
    piece: Callable[[int, int], Piece | None]
    frames: Callable[[Piece, int], Iterator[np.ndarray | None]]
    num_steps: int | None
    stall_seconds: float | None
    name: str
    live: bool
    ahead: int
    what: dict[str, Any]
    future: int = 0


class Streams:
    """An iterator over batches, one computation step each.

    A batch is
      frames: uint8 [B, size, size, 3];
      reset: bool [B], True where this is the first frame of another stream than that of the step
        before: whatever a model carries from step to step starts anew there;
      stream: int32 [B], the number of the stream; -1 where a slot has nothing more to play (its
        frames are black then, and the first one of them is a reset) while others go on.
      targets: like frames, the frame of so many steps later, if the programme has a `future`.

    It ends when no slot has anything more to play. Frames are made ahead in threads; `close` ends
    them. After an error it cannot go on.

    Attributes:
      batch_size: B.
      size: height and width, pixels.
      num_steps: how many batches there are from the very start, or None where that has no end or
        is not known.
      name: what the frames come from, for messages.
    """

    def __init__(self, programme: Programme):
        self.batch_size, self.size = programme.batch_size, programme.size
        self.num_steps, self.name = programme.num_steps, programme.name
        self._programme = programme
        self._place = [(0, 0)] * self.batch_size  # the piece and the frame of it that come next
        self._slots: list[Iterator] | None = None
        self._closed = False

    def __iter__(self) -> "Streams":
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError(f"the streams of {self.name} were closed")
        if self._slots is None:
            self._slots = [
                _play(self._programme, slot, *place) for slot, place in enumerate(self._place)
            ]
        try:
            played = [next(slot, None) for slot in self._slots]
        except TimeoutError:
            self.close()
            raise decoding.BadVideo(
                self.name,
                f"stalls: no frame for stall_seconds={self._programme.stall_seconds:g} s",
            ) from None
        except Exception:
            self.close()
            raise
        if not any(played):
            raise StopIteration
        black = np.zeros((self.size, self.size, 3), np.uint8)
        batch = {
            "frames": np.stack([one.frame if one else black for one in played]),
            "reset": np.array(
                [
                    one.start if one else place[1] != -1
                    for one, place in zip(played, self._place, strict=True)
                ]
            ),
            "stream": np.array([one.stream if one else -1 for one in played], np.int32),
        }
        if self._programme.future:
            batch["targets"] = np.stack([one.target if one else black for one in played])
        self._place = [
            one.following if one else (place[0], -1)
            for one, place in zip(played, self._place, strict=True)
        ]
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where every slot is: a new JSON-compatible dictionary."""
        return {"next": [list(place) for place in self._place], "what": dict(self._programme.what)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken; the next batch is the one that followed there.

        What is live cannot be wound back: it goes on with the frame that comes now, as another
        stream, with a reset.

        Raises:
          ValueError: if the state is not one of these, or belongs to other streams.
        """
        if set(state) != {"next", "what"} or len(state["next"]) != self.batch_size:
            raise ValueError(
                f"not a state of these streams: {json.dumps(state, default=repr)[:200]}"
            )
        was, now = state["what"], json.loads(json.dumps(self._programme.what))
        # States from before there was "content" have the path to go by.
        moving = "path" if "content" in was and "content" in now else "content"
        if changed := [
            f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
            for name in sorted({*was, *now} - {moving})
            if was.get(name) != now.get(name)
        ]:
            raise ValueError(
                "the checkpoint was made with other streams, so training cannot go on exactly: "
                f"{'; '.join(changed)}. Set them back, or start anew in another workdir."
            )
        self._stop()
        if self._programme.live:
            logging.warning("%s cannot be wound back; going on with what it shows now", self.name)
            self._place = [(0, 0)] * self.batch_size
        else:
            self._place = [(int(number), int(frame)) for number, frame in state["next"]]

    def close(self) -> None:
        """Ends the threads. No batch comes after that."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        for slot in self._slots or ():
            slot.close()
        self._slots = None


class _Played(NamedTuple):
    """One frame, and where the slot is after it."""

    frame: np.ndarray
    target: np.ndarray  # the frame itself, where there is no other
    start: bool
    stream: int
    following: tuple[int, int]


def _play(programme: Programme, slot: int, number: int, start: int) -> Iterator[_Played]:
    """All that a slot plays from frame `start` of its piece `number` on; -1: it has ended."""
    if start == -1:
        return

    def pieces() -> Iterator[tuple[int, Piece, int]]:
        for n in itertools.count(number):
            piece = programme.piece(slot, n)
            if piece is None:
                return
            yield n, piece, start if n == number else 0

    def make(item: tuple[int, Piece, int]) -> Iterator[_Played | None]:
        n, piece, first = item
        if piece.num_frames is not None and first >= piece.num_frames:
            return
        at = first
        window: collections.deque = collections.deque(maxlen=programme.future + 1)
        for frame in programme.frames(piece, first):
            if frame is None:
                yield None
                continue
            window.append(frame)
            if len(window) <= programme.future:
                continue
            yield _Played(window[0], window[-1], at == 0, piece.stream, (n, at + 1))
            at += 1

    made = ahead.concatenated(
        make, pieces(), num_threads=1, depth=programme.ahead, patience=programme.stall_seconds
    )
    try:
        yield from (one for one in made if one is not None)
    finally:
        made.close()
