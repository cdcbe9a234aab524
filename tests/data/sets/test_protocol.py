"""Every data set keeps the protocol, and a data set that keeps it needs nothing else."""

import contextlib
import inspect
import types

import numpy as np
import pytest

import data
from data.batches.streams import Piece, Programme
from data.batches.videos import ClipOptions, Splits
from data.sets import CLIPS, STREAMS, protocol
from tests.data.videos import CodedVideos

KINDS = [(CLIPS, protocol.ClipSet), (STREAMS, protocol.StreamSet)]
EVERY = [(name, sets[name], kind) for sets, kind in KINDS for name in sets]


@pytest.mark.parametrize(("name", "data_set", "kind"), EVERY)
def test_every_data_set_keeps_the_protocol(name, data_set, kind):
    functions = [name for name in vars(kind) if not name.startswith("_")]
    assert len(functions) == 2
    for function in functions:
        written = inspect.signature(getattr(kind, function)).parameters
        here = inspect.signature(getattr(data_set, function)).parameters
        assert [(p.name, p.kind, p.default) for p in here.values()] == [
            (p.name, p.kind, p.default)
            for p in list(written.values())[1:]  # without self
        ]
    config = data_set.default_config()
    assert config.name == name
    common = ClipOptions._fields if kind is protocol.ClipSet else ("size", "stride", "batch_size")
    assert set(common) < set(config)
    # The next configuration does not remember what was set in this one.
    config.size = 7
    assert data_set.default_config().size != 7


def test_a_data_set_of_clips_is_two_functions(monkeypatch):
    given = []

    def default_config():
        config = protocol.clip_config("mine", num_frames=4, size=6, flip=False)
        config.length = 5  # frames of a video
        return config

    def splits(config, *, seed):
        given.append((config.length, seed))
        return Splits(
            ["a", "b"], CodedVideos([config.length] * 2), CodedVideos([3]), [("c", "bad")]
        )

    mine = types.SimpleNamespace(default_config=default_config, splits=splits)
    monkeypatch.setitem(CLIPS, "mine", mine)
    config = data.default_config("mine")
    config.batch_size = 2
    source = data.load(config, seed=3, process_index=1, process_count=2)
    assert given == [(5, 3)]
    assert (source.classes, source.num_train, source.num_test) == (("a", "b"), 2, 1)
    assert (source.steps_per_epoch, source.skipped) == (1, (("c", "bad"),))
    with contextlib.closing(iter(source.train)) as batches:
        assert next(batches)["frames"].shape == (1, 4, 6, 6, 3)
    assert [batch["video"].tolist() for batch in source.test(2)] == [[-1]]  # the other process's
    config.lenght = 5
    with pytest.raises(ValueError, match="mine has no field 'lenght'; did you mean 'length'"):
        data.load(config, seed=3)


def test_a_data_set_of_streams_is_two_functions(monkeypatch):
    def programme(config, *, seed, split):
        def frames(piece, start):
            for number in range(piece.first + start, piece.first + piece.num_frames):
                yield np.full((config.size, config.size, 3), 10 * seed + number, np.uint8)

        return Programme(
            batch_size=config.batch_size,
            size=config.size,
            piece=lambda slot, number: None if number else Piece(slot, 5 * slot, 2),
            frames=frames,
            num_steps=2,
            stall_seconds=None,
            name="mine",
            live=False,
            ahead=1,
            what={"split": split},
        )

    def default_config():
        return protocol.ConfigDict({"name": "mine", "size": 4, "stride": 1, "batch_size": 2})

    mine = types.SimpleNamespace(default_config=default_config, programme=programme)
    monkeypatch.setitem(STREAMS, "mine", mine)
    with contextlib.closing(data.load_streams(data.default_config("mine"), seed=3)) as streams:
        shown = [batch["frames"][:, 0, 0, 0].tolist() for batch in streams]
        assert shown == [[30, 35], [31, 36]]
        assert streams.get_state()["what"] == {"split": "train"}
