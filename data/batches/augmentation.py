"""Changes of a training clip that are the same in all of its frames.

Pure functions; the random choices come from the generator that is handed in.
"""

import cv2
import numpy as np

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue


def drawn_side(
    rng: np.random.Generator, size: int, scale: tuple[float, float], height: int, width: int
) -> int:
    """The side of a square crop that will be resized to `size`, pixels; one draw.

    Args:
      rng: the generator.
      size: height and width of the clip.
      scale: from how many times to how many times `size` the side is; every value as probable.
      height, width: of the frame, which the crop does not leave.
    """
    side = round(size * rng.uniform(*scale))
    return int(np.clip(side, 1, min(height, width)))


def resized(clip: np.ndarray, size: int) -> np.ndarray:
    """Square frames uint8 [K, S, S, 3] with `size` pixels a side."""
    if clip.shape[1] == size:
        return clip
    # Areas are averaged where frames get smaller: bilinear weights would leave pixels out.
    how = cv2.INTER_AREA if clip.shape[1] > size else cv2.INTER_LINEAR
    new = np.empty((len(clip), size, size, 3), np.uint8)
    for frame, target in zip(clip, new, strict=True):
        cv2.resize(np.ascontiguousarray(frame), (size, size), dst=target, interpolation=how)
    return new


def jittered(clip: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Another brightness, contrast and saturation: uint8 [K, H, W, 3].

    Each is multiplied by a factor between 1 - strength and 1 + strength; three draws. Contrast is
    that around the mean grey of the whole clip, so that nothing flickers.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    towards_grey = np.tile(_LUMINANCE, (3, 1))
    colours = saturation * np.eye(3) + (1 - saturation) * towards_grey
    mean_grey = _LUMINANCE @ clip.mean(axis=(0, 1, 2))
    matrix = brightness * contrast * colours
    offset = np.full((3, 1), brightness * (1 - contrast) * mean_grey)
    rows = np.ascontiguousarray(clip).reshape(-1, clip.shape[2], 3)
    return cv2.transform(rows, np.hstack([matrix, offset])).reshape(clip.shape)
