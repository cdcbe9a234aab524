"""Moving digits: a small video data set that needs no download.

The 1797 handwritten digits of 8x8 pixels that scikit-learn ships (the test part of the UCI set
"Optical Recognition of Handwritten Digits") glide over a canvas at a constant speed, in fractions
of a pixel, and bounce off its borders. The class is the digit.

With `task="direction"` the class is the direction of motion, one of eight, and a digit that leaves
the canvas comes back at the opposite border. Every digit moves in every direction, in a video for
each: a single frame says nothing about the class, and neither does the digit.

With `clutter=n` the quarters of n other digits glide over the canvas as well, each on a path of its
own, at the same speed.

A video shows one handwritten digit, and no digit is in both training and test videos. A test video
is a function of the seed and its number. A training video takes a new path every time, so that
training never sees a clip twice.
"""

import hashlib
from collections.abc import Iterator

import ml_collections
import numpy as np

from data.batches.videos import Splits
from data.sets.protocol import clip_config
from data.video import boxes

_PIXELS = 8  # height and width of the digits as they are stored
_LEVELS = 16  # their brightest value
TASKS = ("digit", "direction")
# The directions, in which an angle grows from right by way of down.
DIRECTIONS = (
    "right", "down right", "down", "down left", "left", "up left", "up", "up right",
)  # fmt: skip


def default_config() -> ml_collections.ConfigDict:
    """The fields of `config.data` for this data set, with their defaults."""
    # A mirrored digit is another sign.
    config = clip_config("moving_digits", num_frames=16, size=64, flip=False)
    config.task = "digit"  # what the class is: digit, or direction
    config.length = 32  # frames of a video
    config.digit_size = 32  # height and width of a digit, pixels
    config.speed = 1.5  # pixels a frame
    config.clutter = 0  # quarters of other digits that move over the canvas, too
    # Digits, together at most 1797. Each is a video, or with task=direction one for each direction.
    config.num_train = 1437  # an epoch
    config.num_test = 360
    return config


def splits(config: ml_collections.ConfigDict, *, seed: int) -> Splits:
    """Other digits for training than for testing.

    Raises:
      ValueError: for an unknown task, if a digit does not fit on the canvas, or if there are not
        enough digits.
    """
    if config.task not in TASKS:
        raise ValueError(f"task is {config.task!r}; it must be {' or '.join(map(repr, TASKS))}")
    if not 1 <= config.digit_size <= config.size:
        raise ValueError(
            f"digit_size is {config.digit_size}; on a canvas of size {config.size} it must be "
            f"from 1 to {config.size}"
        )
    if config.length < 1:
        raise ValueError(f"length is {config.length}; a video has at least 1 frame")
    if config.speed < 0:
        raise ValueError(f"speed is {config.speed}; it must be 0 or more pixels a frame")
    if config.clutter < 0:
        raise ValueError(f"clutter is {config.clutter}; it must be 0 or more quarters of digits")
    images, labels = _digits()
    if config.num_train < 1 or config.num_test < 0:
        raise ValueError(
            f"num_train is {config.num_train} and num_test is {config.num_test}; they must be at "
            "least 1 and 0"
        )
    if config.num_train + config.num_test > len(images):
        raise ValueError(
            f"num_train + num_test is {config.num_train + config.num_test}; training and test "
            f"videos show different digits, and there are {len(images)}"
        )
    first_test = len(images) - config.num_test

    def videos(chosen: slice) -> MovingDigits:
        return MovingDigits(
            images[chosen],
            labels[chosen],
            directed=config.task == "direction",
            length=config.length,
            size=config.size,
            digit_size=config.digit_size,
            speed=config.speed,
            clutter=config.clutter,
            seed=seed,
        )

    return Splits(
        classes=list(DIRECTIONS if config.task == "direction" else map(str, range(10))),
        train=videos(slice(config.num_train)),
        test=videos(slice(first_test, None)),
    )


class MovingDigits:
    """Videos of moving digits, painted when they are asked for (`data.Videos`)."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        directed: bool,
        length: int,
        size: int,
        digit_size: int,
        speed: float,
        clutter: int = 0,
        seed: int,
    ):
        # Video n of a directed set: digit n // 8 in direction n % 8.
        self._per_digit = len(DIRECTIONS) if directed else 1
        self.labels = list(range(self._per_digit)) * len(labels) if directed else labels.tolist()
        self.num_frames = [length] * len(self.labels)
        what = f"{length} {size} {digit_size} {speed} {self.labels}".encode()
        if clutter:  # Sets of before there was any keep their fingerprints.
            what += f" {clutter}".encode()
        self.fingerprint = hashlib.sha256(what + images.tobytes()).hexdigest()[:16]
        self._images = images
        self._size = size
        self._digit_size = digit_size
        self._speed = speed
        self._clutter = clutter
        self._seed = seed

    def frame_size(self, video: int) -> tuple[int, int]:
        """The canvas."""
        del video
        return self._size, self._size

    def read(
        self, video: int, frames: np.ndarray, box: boxes.Box, rng: np.random.Generator
    ) -> np.ndarray:
        """Some frames of the digit on a path drawn from `rng`: uint8 [K, H, W, 3]."""
        image = self._images[video // self._per_digit]
        if self._per_digit > 1:
            angle = 2 * np.pi * self.labels[video] / self._per_digit
            places = straight(rng, frames, size=self._size, speed=self._speed, angle=angle)
        else:
            room = self._size - self._digit_size
            places = path(rng, frames, room=room, speed=self._speed)
        images = paint(
            image, places, size=self._size, digit_size=self._digit_size, wrap=self._per_digit > 1
        )
        for _ in range(self._clutter):
            images = np.maximum(images, self._quarter(rng, frames))
        return boxes.crop(images, box)

    def _quarter(self, rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
        """Frames with a quarter of any digit of the set, alone, on a path of its own."""
        image = self._images[int(rng.integers(len(self._images)))]
        half = _PIXELS // 2
        rows, columns = (slice(half * n, half * (n + 1)) for n in rng.integers(2, size=2))
        quarter = np.zeros_like(image)
        quarter[rows, columns] = image[rows, columns]
        places = path(rng, frames, room=self._size - self._digit_size, speed=self._speed)
        return paint(quarter, places, size=self._size, digit_size=self._digit_size)

    def stream(self, video: int, box: boxes.Box) -> Iterator[np.ndarray]:
        """The whole video, on the path that belongs to the seed and to the video's number."""
        rng = np.random.default_rng([self._seed, video])
        yield from self.read(video, np.arange(self.num_frames[video]), box, rng)


def path(rng: np.random.Generator, frames: np.ndarray, *, room: float, speed: float) -> np.ndarray:
    """Where the digit is in each of `frames`.

    It starts anywhere, goes straight in any direction, and bounces off the borders.

    Args:
      rng: the generator; three draws, two for the start and one for the direction.
      frames: [K] frame numbers.
      room: how far the digit can go between two borders, pixels.
      speed: pixels a frame.

    Returns:
      float64 [K, 2], the top and the left border of the digit, from 0 to `room`.
    """
    start = rng.uniform(0, room, size=2)
    angle = rng.uniform(0, 2 * np.pi)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    places = start + velocity * np.asarray(frames)[:, None]
    if not room:
        return np.zeros_like(places)
    # Unfold the bounces: a straight line, read through a triangle wave.
    return room - np.abs(places % (2 * room) - room)


def straight(
    rng: np.random.Generator, frames: np.ndarray, *, size: int, speed: float, angle: float
) -> np.ndarray:
    """Where a digit is that never bounces: what leaves the canvas comes back at the other border.

    Args:
      rng: the generator; two draws, for the start, which is anywhere.
      frames: [K] frame numbers.
      size: height and width of the canvas, pixels.
      speed: pixels a frame.
      angle: of the direction: 0 goes right, pi / 2 down.

    Returns:
      float64 [K, 2], the top and the left border of the digit, from 0 to `size`.
    """
    start = rng.uniform(0, size, size=2)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    return (start + velocity * np.asarray(frames)[:, None]) % size


def paint(
    image: np.ndarray, places: np.ndarray, *, size: int, digit_size: int, wrap: bool = False
) -> np.ndarray:
    """Paints a digit at each of `places`, enlarged bilinearly.

    Args:
      image: [8, 8], from 0 to 1.
      places: [K, 2], top and left border of the digit, in pixels, with fractions.
      size: height and width of the canvas, pixels.
      digit_size: height and width of the digit, pixels.
      wrap: whether what is beyond a border of the canvas is painted at the opposite one.

    Returns:
      uint8 [K, size, size, 3], white on black.
    """
    # Bilinear interpolation is the product of one in each direction, so a frame is rows @ image @
    # columns, with weights that depend on where the digit is.
    from_border = np.arange(size) + 0.5 - places[..., None]  # [K, 2, size]
    if wrap:
        margin = (size - digit_size) / 2
        from_border = (from_border + margin) % size - margin
    centres = from_border * (_PIXELS / digit_size)
    away = np.abs(centres[..., None] - (np.arange(_PIXELS) + 0.5))  # [K, 2, size, 8]
    weights = np.clip(1 - away, 0, 1).astype(np.float32)
    grey = weights[:, 0] @ image @ weights[:, 1].swapaxes(1, 2)  # [K, size, size]
    grey = np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits, float32 [1797, 8, 8] from 0 to 1, and labels, in an order that mixes the classes.

    The order takes the first 0, the first 1, ..., the first 9, the second 0, and so on: any run of
    it has about the same number of each, and what is at its end is also late in the original set.
    """
    # Here, because scikit-learn takes a second to import and worker processes do not need it.
    from sklearn import datasets

    digits = datasets.load_digits()
    labels = digits.target.astype(np.int32)
    occurrence = np.zeros_like(labels)
    for digit in range(10):
        places = np.flatnonzero(labels == digit)
        occurrence[places] = np.arange(len(places))
    order = np.lexsort((labels, occurrence))
    return (digits.images[order] / _LEVELS).astype(np.float32), labels[order]
