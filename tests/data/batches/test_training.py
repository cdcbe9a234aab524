import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data.batches.source import make_source
from data.batches.videos import Splits
from tests.data import videos
from tests.data.batches.coded import LENGTHS, OPTIONS, assert_same, batches, clips_of, source, take


def test_shapes_and_types():
    [batch] = batches(1)
    assert set(batch) == {"frames", "label"}
    assert batch["frames"].shape == (4, 4, 6, 6, 3)
    assert batch["frames"].dtype == np.uint8
    assert batch["label"].shape == (4,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("stride", [1, 3])
def test_clips_are_contiguous_padded_cropped_and_flipped_alike_in_all_frames(stride):
    flipped, tops, lefts, starts = [], [], [], []
    for clip, label in clips_of(batches(60, stride=stride)):
        length = LENGTHS[label]
        numbers = clip[:, 0, 0, 0].astype(int)
        assert (clip[..., 0] == numbers[:, None, None]).all()
        assert (numbers == (numbers[0] + stride * np.arange(4)) % length).all()
        assert numbers[0] + 4 * stride <= max(length, 4 * stride)
        rows, columns = clip[..., 1].astype(int), clip[..., 2].astype(int)
        assert (rows == rows[0, 0, 0] + np.arange(6)[:, None]).all()
        steps = set(np.diff(columns).ravel())
        assert steps in ({1}, {-1})  # the same in every frame
        flipped.append(steps == {-1})
        tops.append(rows.min())
        lefts.append(columns.min())
        if label == 6:
            starts.append(numbers[0])
    assert set(tops) == set(range(5))  # 10 - 6 + 1 places
    assert set(lefts) == set(range(7))
    assert 80 < sum(flipped) < 160  # of 240
    assert len(set(starts)) > 5


def test_no_flip():
    for clip, _ in clips_of(batches(20, flip=False)):
        assert (np.diff(clip[..., 2].astype(int)) == 1).all()


def test_every_epoch_takes_every_video_once_and_in_another_order():
    labels = [label for _, label in clips_of(batches(7 * 5))]  # 20 epochs of 7 videos
    epochs = [tuple(labels[start : start + 7]) for start in range(0, 140, 7)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(range(7))}
    assert len(set(epochs)) > 15


def test_steps_per_epoch_is_rounded_up():
    assert source().steps_per_epoch == 2
    assert source(batch_size=7).steps_per_epoch == 1
    assert source(batch_size=100).steps_per_epoch == 1
    assert source(batch_size=1).steps_per_epoch == 7


def test_a_function_of_the_seed():
    assert_same(batches(5, seed=1), batches(5, seed=1))
    for one, other in zip(batches(5, seed=1), batches(5, seed=2), strict=True):
        assert (one["frames"] != other["frames"]).any()


def test_a_video_is_cut_otherwise_in_every_epoch():
    clips = [clip.tobytes() for clip, _ in clips_of(batches(4, [200]))]
    assert len(set(clips)) == 16


def test_the_number_of_workers_changes_nothing():
    expected = batches(7)
    one, two = (iter(source(num_workers=n).train) for n in (1, 2))
    two.set_state(batches_state(1))  # a state moves from no workers to 2
    with videos.closing_all(one, two):
        one.start_prefetch()  # both start their processes at once
        two.start_prefetch()
        assert_same(take(one, 7), expected)
        assert_same(take(two, 4), expected[1:5])
        state = json.loads(json.dumps(two.get_state()))
    assert_same(batches(2, first=state), expected[5:])  # and back


def batches_state(number):
    stream = iter(source().train)
    with videos.closing_all(stream):
        take(stream, number)
        return stream.get_state()


def test_an_error_in_a_worker_arrives(tmp_path):
    """A file that vanished after it was checked, as a folder of videos would meet it."""
    from data.video import files
    from data.video.decoding import BadVideo

    gone = files.Video(str(tmp_path / "gone.avi"), 0, 0, 9, 48, 64)
    videos_of_files = files.FileVideos(str(tmp_path), [gone], 0)
    made = make_source(
        Splits(["a"], videos_of_files, videos_of_files),
        OPTIONS._replace(num_workers=1),
        seed=0,
    )
    stream = iter(made.train)
    with videos.closing_all(stream), pytest.raises(BadVideo, match=r"gone\.avi: cannot be read"):
        next(stream)


@pytest.mark.parametrize("taken", [0, 1, 3, 9])
def test_exact_resume(taken):
    expected = batches(taken + 4)
    state = json.loads(json.dumps(batches_state(taken)))
    assert_same(batches(4, first=state), expected[taken:])


def test_the_state_counts_what_was_taken_not_what_was_made_ahead():
    stream = iter(source().train)
    with videos.closing_all(stream):
        stream.start_prefetch()
        assert stream.get_state()["next_batch"] == 0
        take(stream, 2)
        state = stream.get_state()
        expected = take(stream, 3)
        assert state["next_batch"] == 2  # a state is a copy
        stream.set_state(state)
        assert_same(take(stream, 3), expected)


def test_two_iterators_do_not_disturb_each_other():
    made = source()
    one, other = iter(made.train), iter(made.train)
    with videos.closing_all(one, other):
        first = take(one, 3)
        assert_same(take(other, 3), first)


def test_the_state_of_another_stream():
    with pytest.raises(ValueError, match=r"batch_size was 4 and is 2; .*seed was 0 and is 1"):
        batches(1, batch_size=2, seed=1, first=batches_state(2))
    with pytest.raises(ValueError, match="num_train was 7 and is 2"):
        batches(1, [5, 5], first=batches_state(2))
    with pytest.raises(ValueError, match="not a state of the training batches"):
        batches(1, first={"next_index": 3})


def test_in_an_orbax_checkpoint(tmp_path):
    def manager():
        return ocp.CheckpointManager(tmp_path / "checkpoints")

    stream = iter(source().train)
    take(stream, 3)
    with manager() as checkpoints:
        checkpoints.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(stream)))
    expected = take(stream, 3)
    restored = iter(source().train)
    with manager() as checkpoints:
        checkpoints.restore(
            3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored))
        )
    with videos.closing_all(stream, restored):
        assert restored.get_state()["next_batch"] == 3
        assert_same(take(restored, 3), expected)


def test_grain_transformations_go_on_top():
    labels = source().train.map(lambda batch: batch["label"])
    stream = iter(labels)
    with videos.closing_all(stream):
        got = take(stream, 3)
        state = stream.get_state()
        got += take(stream, 2)
        stream.set_state(state)
        np.testing.assert_array_equal(take(stream, 2), got[3:])
    np.testing.assert_array_equal(got, [batch["label"] for batch in batches(5)])


def test_closing_ends_the_threads_and_the_stream():
    stream = iter(source().train)
    take(stream, 1)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="was closed"):
        next(stream)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_make_together_what_one_makes(count):
    parts = [batches(9, index=index, count=count) for index in range(count)]
    assert {part[0]["frames"].shape[0] for part in parts} == {4 // count}
    together = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][0]}
        for step in range(9)
    ]
    # So no clip is made twice, and every epoch is covered.
    assert_same(together, batches(9))
