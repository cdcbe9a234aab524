"""Moving solids: endless video in the manner of CATER that needs no download.

Shaded spheres, cubes, cylinders and cones, of rubber and metal, slide and turn on a floor, are
picked up, and cones are put over smaller ones (`data.drawing.solid_scenes`), before a camera that
stands still, at 24 frames a second (`data.drawing.ray_caster`).

Frame t of a scene is a function of the seed, the split, the number of the scene and t alone, and so
has the same bits whenever it is drawn. Training and test scenes are drawn from other generators, so
no scene is both.

**Training** plays without end: epoch after epoch, every epoch a new order of the training scenes;
slot b of B plays every B-th of them. The first scene of slot b starts b/B of the way through, so
the streams of a batch end at different times. **Testing** plays every test scene once, from its
first to its last frame.
"""

import functools
from collections.abc import Iterator

import ml_collections
import numpy as np

from data.batches.streams import Piece, Programme
from data.drawing import ray_caster, views
from data.drawing.solid_scenes import Scene

FRAMES_PER_SECOND = 24
_SPLITS = ("train", "test")
# How many samples of how many frames are drawn at a time: NumPy takes as long for few as for many.
_SAMPLES_AT_ONCE = 2**19
_MOST_AT_ONCE = 32


def default_config() -> ml_collections.ConfigDict:
    """The fields of `config.data` for moving solids, with their defaults."""
    config = ml_collections.ConfigDict()
    config.name = "moving_solids"
    config.size = 64  # height and width of the frames, pixels
    config.length = 301  # frames of a stream, that is, of a scene; CATER's videos have 301
    config.stride = 1  # show every stride-th frame of the scene, which lasts so much longer
    config.future = 0  # what is learned: the frame so many steps later; 0: the frame itself
    config.batch_size = 8  # streams that are played at the same time
    config.zoom = 1.0  # of the camera; 2 shows the middle quarter of the picture, twice as large
    config.supersample = 2  # supersample x supersample rays a pixel; 1 has jagged edges
    config.num_train = 1000  # scenes, an epoch
    config.num_test = 16  # scenes
    return config


def programme(config: ml_collections.ConfigDict, *, seed: int, split: str) -> Programme:
    """Scenes: without end for training, each once for testing.

    Raises:
      ValueError: if a value of `config` is out of range, or there is no such split.
    """
    _check(config, seed, split)
    size, length, batch_size = config.size, config.length, config.batch_size

    def piece(slot: int, number: int) -> Piece | None:
        place = number * batch_size + slot
        if split == "test":
            return Piece(place, 0, length) if place < config.num_test else None
        skipped = slot * length // batch_size if number == 0 else 0
        return Piece(_training_scene(seed, config.num_train, place), skipped, length - skipped)

    def frames(piece: Piece, start: int) -> Iterator[np.ndarray]:
        scene = make_scene(seed, split, piece.stream)
        scenery = views.view(size, config.supersample, config.zoom)
        at_once = max(1, min(_SAMPLES_AT_ONCE // len(scenery.ray[0]), _MOST_AT_ONCE))
        stop = piece.first + piece.num_frames + config.future
        for first in range(piece.first + start, stop, at_once):
            times = config.stride * np.arange(first, min(first + at_once, stop))
            yield from ray_caster.draw(scenery, scene.solids, scene.places(times))

    what = {**config.to_dict(), "seed": seed, "split": split}
    for name, default in (("future", 0), ("zoom", 1.0)):  # Streams of earlier versions go on.
        if what[name] == default:
            del what[name]
    return Programme(
        batch_size=batch_size,
        size=size,
        piece=piece,
        frames=frames,
        num_steps=None if split == "train" else length * -(-config.num_test // batch_size),
        stall_seconds=None,
        name="moving_solids",
        live=False,
        ahead=_MOST_AT_ONCE,
        what=what,
        future=config.future,
    )


def make_scene(seed: int, split: str, scene: int) -> Scene:
    """The solids of a scene and their ways: a function of the three arguments."""
    return Scene(np.random.default_rng([seed, _SPLITS.index(split), scene]))


def render(
    seed: int, split: str, scene: int, frame: int, *, size: int = 64, supersample: int = 2
) -> np.ndarray:
    """One frame of one scene by itself: uint8 [size, size, 3].

    Args:
      seed: of the data set.
      split: "train" or "test".
      scene: its number, from 0.
      frame: its number, from 0, at 24 a second.
      size: height and width, pixels.
      supersample: so many rays a pixel, in both directions.

    >>> render(0, "test", 3, 250, size=8).shape
    (8, 8, 3)
    """
    which = make_scene(seed, split, scene)
    scenery = views.view(size, supersample)
    return ray_caster.draw(scenery, which.solids, which.places(np.array([frame])))[0]


def _training_scene(seed: int, num_train: int, place: int) -> int:
    """The scene at one place of the endless sequence of epochs."""
    epoch, place = divmod(place, num_train)
    return int(_order(seed, num_train, epoch)[place])


@functools.lru_cache(maxsize=4)
def _order(seed: int, num_train: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, len(_SPLITS), epoch]).permutation(num_train)


def _check(config: ml_collections.ConfigDict, seed: int, split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split is {split!r}; it can be {' or '.join(_SPLITS)}")
    for name in ("size", "length", "stride", "batch_size", "supersample", "num_train", "num_test"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; it must be at least 1")
    if not 1 <= config.zoom <= 100:  # Below 0.6 the camera would see beyond the floor.
        raise ValueError(f"zoom is {config.zoom}; it must be from 1 to 100")
    if config.future < 0:
        raise ValueError(f"future is {config.future} steps; it must be 0 or more")
    if config.length < config.batch_size:
        raise ValueError(
            f"length is {config.length}; the streams of a batch start one after the other, so it "
            f"must be at least batch_size={config.batch_size}"
        )
    if seed < 0:
        raise ValueError(f"the seed is {seed}; it must be 0 or more")
