"""Vectors of many points at once: three arrays, x, y and z."""

import numpy as np

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z: float32 arrays of one shape


def take(vector: Vector, where: np.ndarray) -> Vector:
    """The vectors at some indices."""
    return tuple(x[where] for x in vector)


def dot(a: Vector, b: Vector) -> np.ndarray:
    """The scalar products."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def plus(point: Vector, direction: Vector, share) -> Vector:
    """`point + share * direction`, in single precision; `share` is one number or an array."""
    share = np.float32(share) if isinstance(share, float) else share
    return tuple(p + share * d for p, d in zip(point, direction, strict=True))


def towards(start: Vector, goal: Vector) -> tuple[Vector, np.ndarray]:
    """Unit vectors from one to the other, and the square of the distance."""
    return unit(tuple(b - a for a, b in zip(start, goal, strict=True)))


def unit(vector: Vector) -> tuple[Vector, np.ndarray]:
    """Unit vectors in the same directions, and the squares of the lengths before."""
    square = dot(vector, vector)
    inverse = 1 / np.sqrt(square)
    return tuple(x * inverse for x in vector), square


def not_zero(x: np.ndarray) -> np.ndarray:
    """`x`, and 1e-9 where it is nearer to 0 than that, to divide by."""
    return np.where(np.abs(x) < np.float32(1e-9), np.float32(1e-9), x)
