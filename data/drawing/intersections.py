"""Where rays meet solids, exactly.

Everything is local: the middle of the base of a solid is the origin.
"""

import numpy as np

from data.drawing.solid_scenes import Solid
from data.drawing.vectors import Vector, dot, not_zero, plus

NEAR = 1e-3  # what is not so far along a ray is the surface that the ray leaves
FAR = np.float32(np.inf)


def distance(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    """How far it is from `start` along unit rays to a solid: FAR where they miss it."""
    return _MEETS[solid.shape](solid, start, ray)


def _meet_sphere(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    radius = np.float32(solid.radius)
    start = (start[0], start[1], start[2] - radius)
    middle = dot(start, ray)
    # Off the ray, not |start|^2 - middle^2: that would cancel.
    foot = plus(start, ray, -middle)
    root = radius * radius - dot(foot, foot)
    return _first(root >= 0, -middle, np.sqrt(np.maximum(root, 0)))


def _meet_cube(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    radius = np.float32(solid.radius)
    enter, leave = -FAR, FAR
    for s, r in ((start[0], ray[0]), (start[1], ray[1]), (start[2] - radius, ray[2])):
        inverse = 1 / not_zero(r)
        middle, half = -s * inverse, radius * np.abs(inverse)
        enter, leave = np.maximum(enter, middle - half), np.minimum(leave, middle + half)
    return _interval(enter, leave)


def _meet_cylinder(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    radius, half_height = np.float32(solid.radius), np.float32(solid.height / 2)
    (x, y, z), (dx, dy, dz) = start, ray
    square = not_zero(dx * dx + dy * dy)
    middle = -(x * dx + y * dy) / square
    foot_x, foot_y = x + middle * dx, y + middle * dy
    root = radius * radius - (foot_x * foot_x + foot_y * foot_y)
    half = np.sqrt(np.maximum(root, 0) / square)
    inverse = 1 / not_zero(dz)
    level, thick = (half_height - z) * inverse, half_height * np.abs(inverse)
    enter = np.maximum(middle - half, level - thick)
    leave = np.minimum(middle + half, level + thick)
    return _interval(enter, np.where(root >= 0, leave, -FAR))


def _meet_cone(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    """The side alone: nothing looks at a base from below but mirrors, and they lose little."""
    slope = np.float32((solid.radius / solid.height) ** 2)
    height = np.float32(solid.height)
    (x, y, z), (dx, dy, dz) = start, ray
    z = height - z  # down from the tip
    a = not_zero(dx * dx + dy * dy - slope * dz * dz)
    b = x * dx + y * dy + slope * z * dz
    c = x * x + y * y - slope * z * z
    root = b * b - a * c
    half = np.sqrt(np.maximum(root, 0))
    nearest = np.full_like(root, FAR)
    for t in ((-b - half) / a, (-b + half) / a):
        level = z - t * dz
        good = (root >= 0) & (level >= 0) & (level <= height) & (t > NEAR)
        nearest = np.where(good & (t < nearest), t, nearest)
    return nearest


_MEETS = {
    "sphere": _meet_sphere,
    "cube": _meet_cube,
    "cylinder": _meet_cylinder,
    "cone": _meet_cone,
}


def _first(met: np.ndarray, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    near, far = middle - half, middle + half
    distance = np.where(near > NEAR, near, far)
    return np.where(met & (distance > NEAR), distance, FAR)


def _interval(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    distance = np.where(enter > NEAR, enter, leave)
    return np.where((enter < leave) & (distance > NEAR), distance, FAR)
