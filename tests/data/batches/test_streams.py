import json
import threading

import numpy as np
import pytest

from data.batches import streams
from data.batches.streams import Piece, Programme, Streams

SIZE = 2


def programme(pieces, *, what=0, live=False, broken_at=None):
    """Slots play `pieces[slot]`, each (stream, first, num_frames); pixels are stream and frame."""

    def piece(slot, number):
        return Piece(*pieces[slot][number]) if number < len(pieces[slot]) else None

    def frames(piece, start):
        for n in range(start, piece.num_frames):
            yield None  # a sign of life
            if (piece.stream, n) == broken_at:
                raise KeyError("broken")
            pixel = [piece.stream, piece.first + n, 255]
            yield np.broadcast_to(np.array(pixel, np.uint8), (SIZE, SIZE, 3))

    return Programme(len(pieces), SIZE, piece, frames, None, 5.0, "test", live, 2, {"a": what})


PIECES = [[(0, 5, 3), (2, 0, 2)], [(1, 0, 2), (3, 7, 1), (4, 0, 1)], [(5, 1, 1)]]


def seen(batches):
    """(stream, frame, reset) of every slot of every batch."""
    table = []
    for batch in batches:
        assert batch["frames"].shape == (3, SIZE, SIZE, 3)
        assert batch["frames"].dtype == np.uint8
        assert batch["reset"].dtype == bool
        assert batch["stream"].dtype == np.int32
        pixels = batch["frames"][:, 0, 0].tolist()
        for pixel, stream in zip(pixels, batch["stream"], strict=True):
            assert pixel[0] == max(stream, 0)
            assert pixel[2] == (255 if stream >= 0 else 0)
        numbers = [pixel[1] for pixel in pixels]
        table.append(
            list(zip(batch["stream"].tolist(), numbers, batch["reset"].tolist(), strict=True))
        )
    return table


TABLE = [
    [(0, 5, True), (1, 0, True), (5, 1, True)],
    [(0, 6, False), (1, 1, False), (-1, 0, True)],
    [(0, 7, False), (3, 7, True), (-1, 0, False)],
    [(2, 0, True), (4, 0, True), (-1, 0, False)],
    [(2, 1, False), (-1, 0, True), (-1, 0, False)],
]


def test_slots_end_at_different_times():
    batches = Streams(programme(PIECES))
    assert seen(batches) == TABLE
    assert next(batches, None) is None


@pytest.mark.parametrize("step", range(6))
def test_goes_on_from_any_step(step):
    before = Streams(programme(PIECES))
    assert seen(next(before) for _ in range(step)) == TABLE[:step]
    state = json.loads(json.dumps(before.get_state()))
    before.close()
    after = Streams(programme(PIECES))
    after.set_state(state)
    assert after.get_state() == state
    assert seen(after) == TABLE[step:]


def test_goes_back():
    batches = Streams(programme(PIECES))
    start = batches.get_state()
    assert seen(batches) == TABLE
    batches.set_state(start)
    assert seen(batches) == TABLE


def test_a_state_of_something_else():
    batches = Streams(programme(PIECES))
    with pytest.raises(ValueError, match=r"other streams.*a was 1 and is 0"):
        batches.set_state(Streams(programme(PIECES, what=1)).get_state())
    with pytest.raises(ValueError, match="not a state of these streams"):
        batches.set_state({"next": [[0, 0]], "what": {"a": 0}})


def test_what_is_live_goes_on_as_another_stream():
    batches = Streams(programme([[(0, 0, 9)]] * 3, live=True))
    next(batches)
    next(batches)
    batches.set_state(batches.get_state())
    assert next(batches)["reset"].all()


def test_an_error_comes_at_its_step_and_ends_everything():
    batches = Streams(programme(PIECES, broken_at=(3, 0)))
    assert seen(next(batches) for _ in range(2)) == TABLE[:2]
    with pytest.raises(KeyError, match="broken"):
        next(batches)
    assert batches.get_state()["next"] == [[0, 2], [0, 2], [0, -1]]
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_close_ends_the_threads():
    endless = [[(0, 0, 10**9)]] * 3
    before = set(threading.enumerate())
    batches = Streams(programme(endless))
    next(batches)
    ours = set(threading.enumerate()) - before
    assert len(ours) == 3
    batches.close()
    for thread in ours:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_a_stall_is_an_error():
    release = threading.Event()

    def frames(piece, start):
        yield np.zeros((SIZE, SIZE, 3), np.uint8)
        release.wait(20)

    stalling = programme([[(0, 0, 9)]])._replace(frames=frames, stall_seconds=0.2)
    batches = Streams(stalling)
    next(batches)
    with pytest.raises(
        streams.decoding.BadVideo, match=r"stalls: no frame for stall_seconds=0\.2 s"
    ):
        next(batches)
    release.set()
