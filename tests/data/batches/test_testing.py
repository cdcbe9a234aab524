import itertools
import threading
import tracemalloc

import numpy as np
import pytest

from tests.data.batches.coded import LENGTHS, assert_same, source


def rows_of(batches):
    """Frame numbers of every clip of every video, in order."""
    rows = {}
    for batch in batches:
        for frames, mask, label, video in zip(
            batch["frames"], batch["mask"], batch["label"], batch["video"], strict=True
        ):
            assert (label, mask.any()) == (video, video >= 0)
            if video >= 0:
                rows.setdefault(int(video), []).append(frames[mask][:, 0, 0, 0].tolist())
            assert not frames[~mask].any()
    return rows


def test_every_test_frame_exactly_once():
    tested = list(source().test())
    for batch in tested:
        assert batch["frames"].shape == (4, 4, 6, 6, 3)
        assert batch["frames"].dtype == np.uint8
        assert batch["mask"].shape == (4, 4)
        assert batch["mask"].dtype == bool
        assert batch["label"].dtype == batch["video"].dtype == np.int32
    rows = rows_of(tested)
    assert list(rows) == list(range(7))
    for video, clips in rows.items():
        assert list(itertools.chain(*clips)) == list(range(LENGTHS[video]))
        assert all(len(clip) == 4 for clip in clips[:-1])
    # Only the last batch is filled up.
    assert all((batch["video"] >= 0).all() for batch in tested[:-1])
    assert (tested[-1]["video"] >= 0).any()


def test_test_clips_have_the_stride_of_training_clips():
    rows = rows_of(source(stride=3).test())
    assert rows[1] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]  # 12 frames
    assert rows[2] == [[0], [1], [2]]  # 3 frames
    for video, clips in rows.items():
        assert sorted(itertools.chain(*clips)) == list(range(LENGTHS[video]))


def test_the_test_crop_is_the_centre():
    for batch in source().test():
        real = batch["frames"][batch["mask"]]
        assert set(real[:, 0, 0, 1]) <= {2}  # (10 - 6) / 2
        assert set(real[:, 0, 0, 2]) <= {3}  # (12 - 6) / 2


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_another_batch_size_for_testing(batch_size):
    tested = list(source().test(batch_size))
    assert {len(batch["label"]) for batch in tested} == {batch_size}
    assert rows_of(tested) == rows_of(source().test())


def test_the_test_set_can_be_gone_through_again():
    made = source()
    assert_same(list(made.test()), list(made.test()))


@pytest.mark.parametrize("lengths", [LENGTHS, [4, 30, 2], [30, 4]])
def test_processes_share_the_test_videos(lengths):
    parts = [list(source(test=lengths, index=index, count=2).test(2)) for index in range(2)]
    assert len(parts[0]) == len(parts[1])  # all take part in every step
    rows = [rows_of(part) for part in parts]
    assert not set(rows[0]) & set(rows[1])
    assert rows[0] | rows[1] == rows_of(source(test=lengths).test())


def test_a_process_without_test_videos():
    parts = [list(source(test=[9], index=index, count=2).test(2)) for index in range(2)]
    assert len(parts[0]) == len(parts[1]) == 3
    assert rows_of(parts[1]) == {}


def test_no_test_videos():
    assert list(source(test=[]).test()) == []


def test_memory_of_testing_does_not_depend_on_the_length():
    def peak(length):
        tracemalloc.start()
        try:
            for batch in source(test=[length] * 2, batch_size=2).test():
                del batch
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(4000) < 1.5 * peak(400)


def test_a_test_run_that_is_given_up_leaves_no_threads():
    tested = source(test=[100] * 4).test()
    next(tested)
    assert any(thread.name == "data-ahead" for thread in threading.enumerate())
    tested.close()
    for thread in threading.enumerate():
        if thread.name == "data-ahead":
            thread.join(timeout=5)
            assert not thread.is_alive()
