"""The solids in all frames: where they are, what rays meet, and how surfaces are turned."""

from collections.abc import Sequence

import numpy as np

from data.drawing import intersections
from data.drawing.solid_scenes import Places, Solid
from data.drawing.vectors import Vector, not_zero, take, unit

_BEVEL = 0.10  # how much of the edge of a cube or a cylinder is rounded, for the light


class Stage:
    """The solids in all frames, and what a ray meets."""

    def __init__(self, solids: Sequence[Solid], places: Places):
        self.solids = solids
        self.centre = places.centre.transpose(1, 2, 0).astype(np.float32)  # [N, 3, F]
        self.cos = np.cos(places.angle).T.astype(np.float32)  # [N, F]
        self.sin = np.sin(places.angle).T.astype(np.float32)
        self.colour = np.array([solid.colour for solid in solids], np.float32)
        self.metal = np.array([solid.metal for solid in solids])
        self.corners = [_corners(n, solid, places) for n, solid in enumerate(solids)]

    def local(self, n: int, frame: np.ndarray, point: Vector) -> Vector:
        """Points as seen from the middle of the base of solid n, turned with it."""
        x, y, z = (a - b[frame] for a, b in zip(point, self.centre[n], strict=True))
        return (*self._turn(n, frame, x, y, 1), z)

    def world(self, n: int, frame: np.ndarray, direction: Vector) -> Vector:
        """Directions the other way round."""
        x, y, z = direction
        return (*self._turn(n, frame, x, y, -1), z)

    def _turn(self, n, frame, x, y, way):
        if self.solids[n].shape != "cube":  # the others look the same from every side
            return x, y
        cos, sin = self.cos[n][frame], np.float32(way) * self.sin[n][frame]
        return cos * x + sin * y, cos * y - sin * x

    def distance(self, n: int, frame: np.ndarray, start: Vector, ray: Vector) -> np.ndarray:
        """How far it is along unit rays to solid n: inf where they miss it."""
        solid = self.solids[n]
        x, y = self._turn(n, frame, ray[0], ray[1], 1)
        return intersections.distance(solid, self.local(n, frame, start), (x, y, ray[2]))

    def near(self, n: int, frame: np.ndarray, start: Vector, ray: Vector) -> np.ndarray:
        """Which of the rays come near solid n, their indices: a quick and generous test."""
        solid = self.solids[n]
        half = np.float32(solid.height / 2)
        x, y, z = (b[frame] - a for a, b in zip(start, self.centre[n], strict=True))
        z = z + half
        along = x * ray[0] + y * ray[1] + z * ray[2]
        reach = np.float32(solid.reach**2 + (solid.height / 2) ** 2)
        if solid.shape == "sphere":
            reach = np.float32(solid.radius**2)
        square = x * x + y * y + z * z
        return np.flatnonzero((along > 0) & (square - along * along < reach))


def _corners(n: int, solid: Solid, places: Places) -> np.ndarray:
    """The corners of a box around solid n: float64 [F, 8, 3]."""
    reach = solid.radius
    box = np.array([[x, y] for x in (-reach, reach) for y in (-reach, reach)])
    if solid.shape == "cube":
        cos, sin = np.cos(places.angle[:, n, None]), np.sin(places.angle[:, n, None])
        x, y = cos * box[:, 0] - sin * box[:, 1], sin * box[:, 0] + cos * box[:, 1]
    else:
        x, y = (np.broadcast_to(side, (len(places.angle), 4)) for side in box.T)
    level = np.zeros_like(x)
    corners = np.stack(
        [np.concatenate([x, x], 1), np.concatenate([y, y], 1),
         np.concatenate([level, level + solid.height], 1)], -1
    )  # fmt: skip
    return corners + places.centre[:, n, None]


def normals(stage: Stage, frame: np.ndarray, owner: np.ndarray, point: Vector) -> Vector:
    """Unit vectors out of the solids at points on them; edges are rounded a little."""
    normal = tuple(np.zeros(len(frame), np.float32) for _ in range(3))
    for n, solid in enumerate(stage.solids):
        mine = np.flatnonzero(owner == n)
        frames = frame[mine]
        x, y, z = stage.local(n, frames, take(point, mine))
        half = np.float32(solid.height / 2)
        z = z - half
        if solid.shape == "cone":
            away = not_zero(np.sqrt(x * x + y * y))
            x, y, z = x / away, y / away, np.full_like(x, solid.radius / solid.height)
        elif solid.shape != "sphere":
            scale = np.float32(1 / solid.radius)
            x, y, z = x * scale, y * scale, z / half
            z = _beyond_bevel(np.abs(z)) * np.sign(z)
            if solid.shape == "cube":
                x = _beyond_bevel(np.abs(x)) * np.sign(x)
                y = _beyond_bevel(np.abs(y)) * np.sign(y)
            else:
                away = not_zero(np.sqrt(x * x + y * y))
                out = _beyond_bevel(away) / away
                x, y = x * out, y * out
        outward, _ = unit((x, y, z))
        for whole, part in zip(normal, stage.world(n, frames, outward), strict=True):
            whole[mine] = part
    return normal


def _beyond_bevel(x: np.ndarray) -> np.ndarray:
    return np.maximum(x - np.float32(1 - _BEVEL), 0)
