"""Which frames and which pixels a clip takes.

Pure functions on index arrays and frames; every random choice comes from the `numpy.random`
generator that is handed in, so a clip is a deterministic function of it. The protocol is the one of
section 4 of the Sideways paper (Malinowski et al., 2020): a random contiguous clip, torus padding,
a random crop and a flip that are the same in every frame, the centre crop at test time.
"""

import numpy as np

from data.video.boxes import Box


def clip_frames(
    rng: np.random.Generator, num_frames: int, clip_length: int, stride: int = 1
) -> np.ndarray:
    """The frames of a random training clip of K = `clip_length` frames.

    A contiguous run of `stride * K` frames is drawn, every start with the same probability, and
    every `stride`-th frame of it is taken: the paper samples `stride` times longer before it
    strides, so that a clip has K frames at any stride. A video that is shorter than the run is
    torus-padded: after its last frame it starts again from its first.

    Args:
      rng: the generator that the start is drawn from (one draw).
      num_frames: how many frames the video has.
      clip_length: K, how many frames the clip has.
      stride: take every `stride`-th frame; 1 takes them all.

    Returns:
      int64 [K], 0-based frame indices in the order of the clip.

    Raises:
      ValueError: if one of the three numbers is below 1.

    >>> clip_frames(np.random.default_rng(0), num_frames=3, clip_length=4, stride=2).tolist()
    [0, 2, 1, 0]
    """
    _at_least_one(num_frames=num_frames, clip_length=clip_length, stride=stride)
    span = clip_length * stride
    start = int(rng.integers(max(num_frames - span, 0) + 1))
    return (start + stride * np.arange(clip_length)) % num_frames


def covering_clips(num_frames: int, clip_length: int, stride: int = 1) -> list[np.ndarray]:
    """The clips that cover a whole video, every frame exactly once.

    The video is cut into blocks of `stride * K` frames, and each block into `stride` clips that
    start one frame after the other, so that a test clip has the frame rate of a training clip.
    Clips of the last block may have fewer than K frames; none is empty.

    Returns:
      A list of int64 arrays of 1 to K frame indices.

    Raises:
      ValueError: if one of the three numbers is below 1.

    >>> [clip.tolist() for clip in covering_clips(num_frames=7, clip_length=2, stride=2)]
    [[0, 2], [1, 3], [4, 6], [5]]
    """
    _at_least_one(num_frames=num_frames, clip_length=clip_length, stride=stride)
    span = clip_length * stride
    return [
        np.arange(block + phase, min(block + span, num_frames), stride)
        for block in range(0, num_frames, span)
        for phase in range(min(stride, num_frames - block))
    ]


def num_covering_clips(num_frames: int, clip_length: int, stride: int = 1) -> int:
    """How many clips `covering_clips` makes.

    >>> num_covering_clips(num_frames=7, clip_length=2, stride=2)
    4
    """
    _at_least_one(num_frames=num_frames, clip_length=clip_length, stride=stride)
    blocks, rest = divmod(num_frames, clip_length * stride)
    return blocks * stride + min(rest, stride)


def random_crop(rng: np.random.Generator, height: int, width: int, size: int) -> Box:
    """A box of `size` x `size` pixels, every position in the frame with the same probability.

    Two draws from `rng`: the top, then the left.

    Raises:
      ValueError: if the box does not fit into the frame.
    """
    _fits(height, width, size)
    top = int(rng.integers(height - size + 1))
    left = int(rng.integers(width - size + 1))
    return Box(top, left, size, size)


def centre_crop(height: int, width: int, size: int) -> Box:
    """The box of `size` x `size` pixels in the middle of the frame, rounded up and left.

    Raises:
      ValueError: if the box does not fit into the frame.

    >>> centre_crop(height=128, width=171, size=112)
    Box(top=8, left=29, height=112, width=112)
    """
    _fits(height, width, size)
    return Box((height - size) // 2, (width - size) // 2, size, size)


def flip(frames: np.ndarray) -> np.ndarray:
    """Every one of `frames` [..., H, W, C] mirrored left to right: a view."""
    return frames[..., ::-1, :]


def pad_clip(frames: np.ndarray, clip_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills a clip of the last block with black frames, so that every test clip has K frames.

    Args:
      frames: [n, ...] with 1 <= n <= K.
      clip_length: K.

    Returns:
      The frames [K, ...] and a mask bool [K] that is True for the n real ones. Padded frames are
      not evaluated, so their content does not matter.
    """
    padded = np.zeros((clip_length, *frames.shape[1:]), frames.dtype)
    padded[: len(frames)] = frames
    return padded, np.arange(clip_length) < len(frames)


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")


def _fits(height: int, width: int, size: int) -> None:
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"a crop of {size}x{size} pixels does not fit into a frame of {height}x{width}; "
            f"choose a size from 1 to {min(height, width)}, or resize the frames to more"
        )
