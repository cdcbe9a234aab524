"""Evaluation over whole videos, against sums by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from data import load
from experiments.jobs.classification.accuracy import make_evaluate
from sideways_jax import Module, Network
from tests.experiments import tiny


def batches_of(videos, num_frames, rows, size=2):
    """Clips of K frames of the videos in order, padded like `Source.test`, with poisoned padding.

    Args:
      videos: for each its frames' brightness, a list of integers, and its label.
    """
    clips = []
    for video, (brightness, label) in enumerate(videos):
        for start in range(0, len(brightness), num_frames):
            clips.append((video, label, brightness[start : start + num_frames]))
    clips += [(-1, -1, [])] * (-len(clips) % rows)
    for start in range(0, len(clips), rows):
        batch = clips[start : start + rows]
        frames = np.full((rows, num_frames, size, size, 3), 255, np.uint8)
        mask = np.zeros((rows, num_frames), bool)
        for row, (_, _, brightness) in enumerate(batch):
            frames[row, : len(brightness)] = np.reshape(brightness, (-1, 1, 1, 1))
            mask[row, : len(brightness)] = True
        yield {
            "frames": frames,
            "mask": mask,
            "label": np.array([label for _, label, _ in batch], np.int32),
            "video": np.array([video for video, _, _ in batch], np.int32),
        }


def network_of(logits_by_brightness):
    """A network that looks its logits up by the brightness of the frame."""
    table = jnp.asarray(logits_by_brightness, jnp.float32)
    # The padding's brightness is 255: whatever it gives must not be used.
    table = jnp.pad(table, [(0, 256 - len(table)), (0, 0)], constant_values=np.nan)

    def apply(params, state, x, *, train, rng):
        assert not train
        return table[x[:, 0, 0, 0].astype(jnp.int32)], state

    return Network([Module(lambda key, x: ((), ()), apply)])


VIDEOS = [([0, 0, 1, 0, 0], 0), ([2], 1), ([1, 1, 2, 3], 0)]
LOGITS = [[2.0, 0.0], [0.0, 9.0], [1.0, 0.0], [50.0, 0.0]]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_average_over_every_frame_once(num_frames, rows, average):
    result = make_evaluate(network_of(LOGITS), average)(
        ((),), ((),), batches_of(VIDEOS, num_frames, rows), num_videos=3, num_classes=2, shown=[2]
    )
    logits = [np.array([LOGITS[b] for b in brightness]) for brightness, _ in VIDEOS]
    if average == "logits":
        probabilities = [softmax(one.mean(axis=0)) for one in logits]
    else:
        probabilities = [softmax(one).mean(axis=0) for one in logits]
    labels = [label for _, label in VIDEOS]
    expected = [p.argmax() == label for p, label in zip(probabilities, labels, strict=True)]
    loss = -np.mean([np.log(p[label]) for p, label in zip(probabilities, labels, strict=True)])
    assert result.accuracy == np.mean(expected)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
    assert result.videos == 3
    assert result.frames == 5 + 1 + 4
    [clip] = result.shown
    assert clip.frames[:, 0, 0, 0].tolist() == VIDEOS[2][0][:num_frames]
    assert clip.label == 0
    np.testing.assert_allclose(clip.probabilities, probabilities[2], rtol=1e-6)


def test_the_two_averages_can_disagree():
    """One very sure frame outweighs two others in logits, not in probabilities."""
    videos = [([1, 1, 3], 0)]
    accuracies = [
        make_evaluate(network_of(LOGITS), average)(
            ((),), ((),), batches_of(videos, 2, 1), num_videos=1, num_classes=2
        ).accuracy
        for average in ("logits", "probabilities")
    ]
    assert accuracies == [1.0, 0.0]


def test_counts_the_frames_of_a_real_source():
    config = tiny.config(data__num_frames=11, data__length=25, data__num_test=7).data
    source = load(config, seed=0)
    network = network_of(np.zeros((255, 10)))
    result = make_evaluate(network, "logits")(
        ((),), ((),), source.test(3), num_videos=7, num_classes=10
    )
    assert (result.videos, result.frames) == (7, 7 * 25)
    np.testing.assert_allclose(result.loss, np.log(10), rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="did you mean 'logits'"):
        make_evaluate(network_of(LOGITS), "logit")
    evaluate = make_evaluate(network_of(LOGITS), "logits")
    with pytest.raises(ValueError, match="1 of 4 test videos had no frames, number 3"):
        evaluate(((),), ((),), batches_of(VIDEOS, 2, 2), num_videos=4, num_classes=2)


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
