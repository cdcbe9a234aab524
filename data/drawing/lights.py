"""The lamps, the floor, and the light that they give."""

import numpy as np

from data.drawing.vectors import Vector, dot, towards, unit

KEY = np.array([-4.2, -3.6, 8.5])  # the lamp that throws shadows
# The ways to the other two lamps.
FILL = np.array([0.80, -0.40, 0.45]) / np.linalg.norm([0.80, -0.40, 0.45])
BACK = np.array([0.15, 0.85, 0.50]) / np.linalg.norm([0.15, 0.85, 0.50])
FLOOR = np.array([0.400, 0.392, 0.380], np.float32)  # linear RGB
_AMBIENT, _KEY_POWER, _FILL_POWER, _BACK_POWER = 0.40, 0.88, 0.34, 0.22


def light(
    point: Vector, normal: Vector, ray: Vector | None = None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Light on points: from the lamp, its gloss (dull, sharp), and all other light."""
    to_lamp, square = towards(point, tuple(np.float32(x) for x in KEY))
    # Nearer to the lamp it is brighter, as much as at its usual distance of 10.
    power = np.float32(_KEY_POWER * 190) / (square + np.float32(90))
    key = np.maximum(dot(normal, to_lamp), 0) * power
    other = np.float32(_AMBIENT) * (np.float32(0.72) + np.float32(0.28) * normal[2])
    for way, strength in ((FILL, _FILL_POWER), (BACK, _BACK_POWER)):
        facing = dot(normal, tuple(way.astype(np.float32)))
        other = other + np.float32(strength) * np.maximum(facing, 0)
    if ray is None:
        return key, (np.float32(0), np.float32(0)), other
    half, _ = unit(tuple(a - b for a, b in zip(to_lamp, ray, strict=True)))
    shine = np.maximum(dot(normal, half), 0)
    for _ in range(4):
        shine = shine * shine
    dull, shine = shine, shine * shine
    shine = shine * shine
    return key, (dull, shine * shine), other


def surroundings(start: Vector, ray: Vector) -> np.ndarray:
    """Radiance [M, 3] along rays that meet no solid: a floor below, a dim room above."""
    down = np.minimum(ray[2], np.float32(-1e-3))
    far = start[2] / -down
    x, y = start[0] + far * ray[0], start[1] + far * ray[1]
    away = x * x + y * y
    floor = np.float32(1.25) / (1 + away * np.float32(0.012))
    # Darker right beside the solid, which stands in its own shadow there.
    floor = floor * np.minimum(np.float32(0.35) + np.float32(0.9) * start[2], 1)
    up = np.clip(ray[2], 0, 1)
    room = np.float32(0.30) + np.float32(0.22) * up
    for lamp, edge, power in ((FILL, 0.90, 1.3), (BACK, 0.90, 0.9)):
        x, y, z = lamp.astype(np.float32)
        within = (ray[0] * x + ray[1] * y + ray[2] * z - np.float32(edge)) * np.float32(25)
        room = room + np.float32(power) * np.clip(within, 0, 1)
    below = np.clip(np.float32(0.5) - ray[2] * 12, 0, 1)
    seen = below * floor + (1 - below) * room
    return seen[:, None] * (FLOOR * np.float32(1.6))
