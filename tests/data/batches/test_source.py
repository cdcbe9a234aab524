import itertools
import json
import pathlib
import subprocess
import sys
import threading
import tracemalloc

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data.batches.source import ClipOptions, Splits, make_source
from tests.data import videos

OPTIONS = ClipOptions(num_frames=4, size=6, stride=1, flip=True, batch_size=4, num_workers=0)
LENGTHS = [9, 12, 3, 20, 6, 11, 30]


def source(train=LENGTHS, test=LENGTHS, *, seed=0, index=0, count=1, **options):
    return make_source(
        Splits(
            [str(video) for video in range(max(len(train), len(test)))],
            videos.CodedVideos(train),
            videos.CodedVideos(test),
        ),
        OPTIONS._replace(**options),
        seed=seed,
        process_index=index,
        process_count=count,
    )


def take(stream, number):
    return [next(stream) for _ in range(number)]


def batches(number, *args, first=None, **kwargs):
    stream = iter(source(*args, **kwargs).train)
    if first is not None:
        stream.set_state(first)
    with videos.closing_all(stream):
        return take(stream, number)


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def clips_of(batches):
    return [
        (clip, int(label))
        for batch in batches
        for clip, label in zip(batch["frames"], batch["label"], strict=True)
    ]


# Training.


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
    """A file that vanished after it was checked, as `data.sets.video_folder` would meet it."""
    from data.sets import video_folder
    from data.video.decoding import BadVideo

    gone = video_folder.Video(str(tmp_path / "gone.avi"), 0, 0, 9, 48, 64)
    videos_of_files = video_folder.FolderVideos(str(tmp_path), [gone], 0)
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


# Testing.


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


# Bad input.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"size": 0}, "size is 0"),
        ({"size": 11}, "a crop of 11x11 pixels does not fit into a frame of 10x12"),
        ({"stride": -1}, "stride is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -2}, "num_workers is -2"),
        ({"seed": -1}, "the seed is -1"),
        ({"train": []}, "there is no training video"),
        ({"count": 3}, "batch_size is 4; it must be a positive multiple of .* 3"),
        ({"index": 2, "count": 2}, "process_index is 2; with 2 processes .* from 0 to 1"),
    ],
)
def test_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        source(**wrong)


@pytest.mark.parametrize(
    ("classes", "train", "test", "message"),
    [
        ("abc", [5, 5], [5] * 4, "test video 3 has the label 3; it must be .* from 0 to 2"),
        ("a", [5, 5], [5], "training video 1 has the label 1; it must be .* from 0 to 0"),
        ("ab", [5, 0], [5], "training video 1 has 0 frames; it must be at least 1"),
    ],
)
def test_videos_that_cannot_be(classes, train, test, message):
    """A label without a class would train and test as a class that is not there."""
    splits = Splits(classes, *map(videos.CodedVideos, (train, test)))
    with pytest.raises(ValueError, match=message):
        make_source(splits, OPTIONS, seed=0)


def test_a_test_batch_size_that_cannot_be_shared():
    with pytest.raises(ValueError, match=r"batch_size is 3; .* 2"):
        source(count=2).test(3)
    with pytest.raises(ValueError, match="batch_size is -1"):
        source().test(-1)


def test_no_jax_in_what_workers_run(tmp_path):
    """Batches are made, decoding included, where JAX cannot be imported, with nothing set up."""
    videos.write_video(tmp_path / "videos" / "a" / "1.avi", 9)
    videos.write_video(tmp_path / "videos" / "b" / "2.avi", 9)
    program = f"""
import sys
sys.modules["jax"] = None
import data
for name in ("moving_digits", "video_folder"):
    config = data.default_config(name)
    if name == "video_folder":
        config.path, config.cache_dir = {str(tmp_path / "videos")!r}, {str(tmp_path)!r}
    config.size = config.num_frames = 32
    config.batch_size = 2
    source = data.load(config, seed=0)
    stream = iter(source.train)
    print(next(stream)["frames"].shape, next(source.test())["frames"].shape)
    stream.close()
"""
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:2] == ["(2, 32, 32, 32, 3) (2, 32, 32, 32, 3)"] * 2, done.stderr
