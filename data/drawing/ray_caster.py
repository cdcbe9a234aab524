"""Draws solids on a floor: one ray for each sample of a pixel, and exact intersections.

The camera, the floor and the lamps stand still, as in CLEVR and CATER. One lamp throws shadows, two
fill them up; metal mirrors the floor, the lamps and its neighbours. With n x n samples a pixel,
each sample sees another spot of the lamp, so that shadows have soft edges.

Only samples near a solid or its shadow are worked on, those of many frames at once. Whatever
happens to a sample is addition, multiplication, division or a square root in single precision, in
an order that does not depend on what else is drawn: a frame has the same bits whether it is drawn
alone or with others.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.drawing.solid_scenes import Places, Solid

_EYE = np.array([0.0, -11.4, 8.1])
_LOOKS_AT = np.array([0.0, 0.0, 0.75])
_FOCAL_LENGTH = 2.85  # of half the width of the picture
_KEY = np.array([-4.2, -3.6, 8.5])  # the lamp that throws shadows
_KEY_SIZE = 1.5  # its width
_SPREAD = 2  # so many pixels in a row see spots of their own
_FILL = np.array([0.80, -0.40, 0.45]) / np.linalg.norm([0.80, -0.40, 0.45])  # where it is
_BACK = np.array([0.15, 0.85, 0.50]) / np.linalg.norm([0.15, 0.85, 0.50])
_FLOOR = np.array([0.400, 0.392, 0.380], np.float32)  # linear RGB
_AMBIENT, _KEY_POWER, _FILL_POWER, _BACK_POWER = 0.40, 0.88, 0.34, 0.22
_BEVEL = 0.10  # how much of the edge of a cube or a cylinder is rounded, for the light
_NEAR = 1e-3
_FAR = np.float32(np.inf)

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z: float32 arrays of one shape


class View(NamedTuple):
    """What does not change from frame to frame; R samples, `samples` x `samples` a pixel."""

    size: int  # height and width, pixels
    samples: int
    ray: Vector  # [R] unit vectors from the eye
    floor: Vector  # [R] where they meet the floor
    lamp: Vector  # [R] the spot of the lamp that a sample sees
    lamps: np.ndarray  # float64 [4, 3], the outermost of these spots
    to_camera: np.ndarray  # float64 [3, 3]: right, up and forward
    floor_middle: Vector  # [P] the floor at the centres of the pixels
    floor_key: np.ndarray  # [P], light from the lamp there
    floor_ambient: np.ndarray  # [P], all other light there


@functools.lru_cache(maxsize=8)
def view(size: int, samples: int = 2) -> View:
    """The picture of `size` x `size` pixels with `samples` x `samples` rays a pixel."""
    forward = _LOOKS_AT - _EYE
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right = right / np.linalg.norm(right)
    to_camera = np.stack([right, np.cross(right, forward), forward])

    def rays(width: int) -> tuple[Vector, Vector]:
        at = (np.arange(width) + 0.5) / width * 2 - 1
        up, across = np.meshgrid(-at, at, indexing="ij")
        ray = np.stack([across.ravel(), up.ravel(), np.full(width**2, _FOCAL_LENGTH)], -1)
        ray = ray @ to_camera
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        floor = _EYE - ray * (_EYE[2] / ray[:, 2:])
        return tuple(ray.T.astype(np.float32)), tuple(floor.T.astype(np.float32))

    width = size * samples
    ray, floor = rays(width)
    across = np.cross(_KEY, [0, 0, 1])
    across = across / np.linalg.norm(across)
    num_spots = samples * _SPREAD
    spots = ((np.arange(num_spots) + 0.5) / num_spots - 0.5) * _KEY_SIZE
    along = np.cross(across, _KEY / np.linalg.norm(_KEY))
    lamps = np.array([_KEY + across * u + along * v for u in spots for v in spots])
    # Samples that are side by side see spots far apart: 0, 2, 1, 3 for two pixels of two samples.
    order = np.arange(num_spots).reshape(_SPREAD, samples).T.ravel()
    row, column = np.divmod(np.arange(width**2), width)
    spot = order[row % num_spots] * num_spots + order[column % num_spots]
    lamp = tuple(lamps[spot].T.astype(np.float32))
    lamps = lamps[[0, num_spots - 1, -num_spots, -1]]
    middle = rays(size)[1]
    zero = np.zeros(size**2, np.float32)
    key, _, ambient = _light(middle, (zero, zero, zero + 1))
    return View(size, samples, ray, floor, lamp, lamps, to_camera, middle, key, ambient)


def draw(scenery: View, solids: Sequence[Solid], places: Places) -> np.ndarray:
    """Draws F frames of a scene.

    Args:
      scenery: from `view`.
      solids: N of them.
      places: where they are in each of the frames.

    Returns:
      uint8 [F, size, size, 3], sRGB but for a gamma of exactly 2.
    """
    num_frames, num_rays = len(places.centre), len(scenery.ray[0])
    stage = _Stage(solids, places)
    depth = np.full(num_frames * num_rays, _FAR, np.float32)
    owner = np.full(num_frames * num_rays, -1, np.int8)
    eye = tuple(np.float32(x) for x in _EYE)
    for n, boxes in enumerate(_boxes(scenery, stage.corners)):
        frame, ray = _inside(boxes, scenery)
        distance = stage.distance(n, frame, eye, _take(scenery.ray, ray))
        sample = frame * num_rays + ray
        nearer = distance < depth[sample]
        depth[sample[nearer]] = distance[nearer]
        owner[sample[nearer]] = n

    seen = np.flatnonzero(owner >= 0)
    radiance = _shade(scenery, stage, seen, owner[seen], depth[seen])
    # Clipped before the mean: a highlight brighter than white has no jagged edge then.
    np.minimum(radiance, 1, out=radiance)
    pixel = _pixels(scenery, seen)
    shown = np.bincount(pixel, minlength=num_frames * scenery.size**2).astype(np.float32)
    num_samples = np.float32(scenery.samples**2)
    floor = (num_samples - shown) * _lit_floor(scenery, stage, owner, shown)
    picture = np.empty((len(shown), 3), np.uint8)
    for channel in range(3):
        total = np.bincount(pixel, radiance[:, channel], len(shown)).astype(np.float32)
        mean = (total + floor * _FLOOR[channel]) / num_samples
        picture[:, channel] = np.sqrt(np.minimum(mean, 1)) * 255 + np.float32(0.5)
    return picture.reshape(num_frames, scenery.size, scenery.size, 3)


class _Stage:
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
        return _MEETS[solid.shape](solid, self.local(n, frame, start), (x, y, ray[2]))

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


def _lit_floor(scenery: View, stage: _Stage, owner: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """How bright the floor is in every pixel, [F * P]; `shown` samples of it show solids."""
    num_rays = len(scenery.ray[0])
    num_frames = len(owner) // num_rays
    dark = np.zeros(len(owner), bool)
    for n, corners in enumerate(stage.corners):
        # The shadow lies within those of the corners, from the outermost spots of the lamp.
        lamps = scenery.lamps[:, None, None]
        share = lamps[..., 2:] / (lamps[..., 2:] - corners)[..., 2:]
        shadows = (lamps + share * (corners - lamps)).transpose(1, 0, 2, 3)
        [boxes] = _boxes(scenery, [shadows.reshape(len(corners), -1, 3)])
        frame, ray = _inside(boxes, scenery)
        sample = frame * num_rays + ray
        open_floor = np.flatnonzero((owner[sample] < 0) & ~dark[sample])
        frame, ray, sample = frame[open_floor], ray[open_floor], sample[open_floor]
        point = _take(scenery.floor, ray)
        to_lamp, _ = _towards(point, _take(scenery.lamp, ray))
        dark[sample] = stage.distance(n, frame, point, to_lamp) < _FAR
    # The pixels of a window see all spots of the lamp once: their mean is a smooth shadow.
    pixel = _pixels(scenery, np.flatnonzero(dark))
    num_dark = np.bincount(pixel, minlength=len(shown)).astype(np.float32)
    shape = (num_frames, scenery.size, scenery.size)
    num_floor = np.float32(scenery.samples**2) - shown
    shadow = _window(num_dark.reshape(shape)) / np.maximum(_window(num_floor.reshape(shape)), 1)
    hidden = _hidden_sky(stage, scenery.floor_middle, num_frames)
    ambient = scenery.floor_ambient * (1 - hidden)
    return (ambient + scenery.floor_key * (1 - shadow.reshape(num_frames, -1))).reshape(-1)


def _window(numbers: np.ndarray) -> np.ndarray:
    """Sums over windows of _SPREAD x _SPREAD pixels of [F, size, size], smaller at two borders."""
    for axis in (1, 2):
        moved = np.zeros_like(numbers)
        to, of = [slice(None)] * 3, [slice(None)] * 3
        to[axis], of[axis] = slice(1, None), slice(None, -1)
        moved[tuple(to)] = numbers[tuple(of)]
        numbers = numbers + moved
    return numbers


def _pixels(scenery: View, samples: np.ndarray) -> np.ndarray:
    """The pixels of F * P that some samples of F * R belong to."""
    n = scenery.samples
    if n == 1:
        return samples
    row, column = np.divmod(samples, scenery.size * n)  # rows of all frames
    return row // n * scenery.size + column // n


def _hidden_sky(stage: _Stage, point: Vector, num_frames: int) -> np.ndarray:
    """How much of the sky the solids hide from points of the floor, each taken for a sphere."""
    hidden = np.zeros((num_frames, len(point[0])), np.float32)
    for n, solid in enumerate(stage.solids):
        x, y, z = (c[:, None] for c in stage.centre[n])
        middle = z + np.float32(0.5 * solid.height)
        along, aside = point[0] - x, point[1] - y
        square = along * along + aside * aside + middle * middle
        hidden += np.float32(0.9 * solid.radius**2) * middle / (square * np.sqrt(square))
    return np.minimum(hidden, np.float32(0.85))


def _shade(
    scenery: View, stage: _Stage, seen: np.ndarray, owner: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """The radiance [M, 3] of the samples `seen` that show a solid."""
    num_rays = len(scenery.ray[0])
    frame, ray_number = np.divmod(seen, num_rays)
    ray = _take(scenery.ray, ray_number)
    point = tuple(np.float32(e) + depth * r for e, r in zip(_EYE, ray, strict=True))
    normal = _normals(stage, frame, owner, point)
    lifted = _plus(point, normal, 4 * _NEAR)
    # On solids shadows are sharp: nothing smooths the edges that the spots would leave.
    to_lamp, _ = _towards(point, tuple(np.float32(x) for x in _KEY))
    lit = _dot(normal, to_lamp) > 0
    faces = np.flatnonzero(lit)
    frames, owners, start, way = (
        frame[faces],
        owner[faces],
        _take(lifted, faces),
        _take(to_lamp, faces),
    )
    for n in range(len(stage.solids)):
        near = stage.near(n, frames, start, way)
        near = near[owners[near] != n]
        met = stage.distance(n, frames[near], _take(start, near), _take(way, near)) < _FAR
        lit[faces[near[met]]] = False
    key, shine, other = _light(point, normal, ray)
    colour = stage.colour[owner]
    # Close to the floor less of the sky is seen.
    other = other * np.minimum(np.float32(0.55) + np.float32(0.6) * point[2], 1)
    diffuse = other + np.where(lit, key, 0)
    gloss = np.where(lit, np.float32(0.10) * shine[0], 0)
    radiance = colour * diffuse[:, None] + gloss[:, None]

    metal = np.flatnonzero(stage.metal[owner])
    if metal.size:
        glare = np.where(lit[metal], np.float32(2.2) * shine[1][metal], 0)[:, None]
        normal, ray = _take(normal, metal), _take(ray, metal)
        facing = -_dot(normal, ray)
        mirrored = _plus(ray, normal, 2 * facing)
        mirror = _mirror(
            scenery, stage, frame[metal], owner[metal], _take(lifted, metal), mirrored
        )  # fmt: skip
        # Tinted, and less so where it is looked at from the side.
        graze = 1 - np.clip(facing, 0, 1)
        graze = (graze * graze * graze * graze)[:, None] * np.float32(0.6)
        tint = np.float32(0.12) + np.float32(0.88) * colour[metal]
        tint = tint + graze * (1 - tint)
        radiance[metal] = np.float32(0.28) * radiance[metal] + tint * mirror + glare
    return radiance


def _mirror(
    scenery: View,
    stage: _Stage,
    frame: np.ndarray,
    owner: np.ndarray,
    start: Vector,
    ray: Vector,
) -> np.ndarray:
    """What metal mirrors: neighbours without their shadows, else the floor or the lamps."""
    nearest = np.full(len(frame), _FAR, np.float32)
    whose = np.full(len(frame), -1, np.int8)
    for n in range(len(stage.solids)):
        towards = stage.near(n, frame, start, ray)
        towards = towards[owner[towards] != n]
        distance = stage.distance(n, frame[towards], _take(start, towards), _take(ray, towards))
        nearer = distance < nearest[towards]
        nearest[towards[nearer]] = distance[nearer]
        whose[towards[nearer]] = n
    radiance = _surroundings(start, ray)
    hit = np.flatnonzero(whose >= 0)
    if hit.size:
        point = _plus(_take(start, hit), _take(ray, hit), nearest[hit])
        normal = _normals(stage, frame[hit], whose[hit], point)
        key, _, other = _light(point, normal)
        radiance[hit] = stage.colour[whose[hit]] * (key + other)[:, None]
    return radiance


def _surroundings(start: Vector, ray: Vector) -> np.ndarray:
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
    for lamp, edge, power in ((_FILL, 0.90, 1.3), (_BACK, 0.90, 0.9)):
        x, y, z = lamp.astype(np.float32)
        inside = (ray[0] * x + ray[1] * y + ray[2] * z - np.float32(edge)) * np.float32(25)
        room = room + np.float32(power) * np.clip(inside, 0, 1)
    below = np.clip(np.float32(0.5) - ray[2] * 12, 0, 1)
    light = below * floor + (1 - below) * room
    return light[:, None] * (_FLOOR * np.float32(1.6))


def _light(
    point: Vector, normal: Vector, ray: Vector | None = None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Light on points: from the lamp, its gloss (dull, sharp), and all other light."""
    to_lamp, square = _towards(point, tuple(np.float32(x) for x in _KEY))
    # Nearer to the lamp it is brighter, as much as at its usual distance of 10.
    power = np.float32(_KEY_POWER * 190) / (square + np.float32(90))
    key = np.maximum(_dot(normal, to_lamp), 0) * power
    other = np.float32(_AMBIENT) * (np.float32(0.72) + np.float32(0.28) * normal[2])
    for towards, strength in ((_FILL, _FILL_POWER), (_BACK, _BACK_POWER)):
        facing = _dot(normal, tuple(towards.astype(np.float32)))
        other = other + np.float32(strength) * np.maximum(facing, 0)
    if ray is None:
        return key, (np.float32(0), np.float32(0)), other
    half, _ = _unit(tuple(a - b for a, b in zip(to_lamp, ray, strict=True)))
    shine = np.maximum(_dot(normal, half), 0)
    for _ in range(4):
        shine = shine * shine
    dull, shine = shine, shine * shine
    shine = shine * shine
    return key, (dull, shine * shine), other


# What a ray meets. Everything is local: the middle of the base is the origin.


def _meet_sphere(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    radius = np.float32(solid.radius)
    start = (start[0], start[1], start[2] - radius)
    middle = _dot(start, ray)
    # Off the ray, not |start|^2 - middle^2: that would cancel.
    foot = _plus(start, ray, -middle)
    root = radius * radius - _dot(foot, foot)
    return _first(root >= 0, -middle, np.sqrt(np.maximum(root, 0)))


def _meet_cube(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    radius = np.float32(solid.radius)
    enter, leave = -_FAR, _FAR
    for s, r in ((start[0], ray[0]), (start[1], ray[1]), (start[2] - radius, ray[2])):
        inverse = 1 / _not_zero(r)
        middle, half = -s * inverse, radius * np.abs(inverse)
        enter, leave = np.maximum(enter, middle - half), np.minimum(leave, middle + half)
    return _interval(enter, leave)


def _meet_cylinder(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    radius, half_height = np.float32(solid.radius), np.float32(solid.height / 2)
    (x, y, z), (dx, dy, dz) = start, ray
    square = _not_zero(dx * dx + dy * dy)
    middle = -(x * dx + y * dy) / square
    foot_x, foot_y = x + middle * dx, y + middle * dy
    root = radius * radius - (foot_x * foot_x + foot_y * foot_y)
    half = np.sqrt(np.maximum(root, 0) / square)
    inverse = 1 / _not_zero(dz)
    level, thick = (half_height - z) * inverse, half_height * np.abs(inverse)
    enter = np.maximum(middle - half, level - thick)
    leave = np.minimum(middle + half, level + thick)
    return _interval(enter, np.where(root >= 0, leave, -_FAR))


def _meet_cone(solid: Solid, start: Vector, ray: Vector) -> np.ndarray:
    """The side alone: nothing looks at a base from below but mirrors, and they lose little."""
    slope = np.float32((solid.radius / solid.height) ** 2)
    height = np.float32(solid.height)
    (x, y, z), (dx, dy, dz) = start, ray
    z = height - z  # down from the tip
    a = _not_zero(dx * dx + dy * dy - slope * dz * dz)
    b = x * dx + y * dy + slope * z * dz
    c = x * x + y * y - slope * z * z
    root = b * b - a * c
    half = np.sqrt(np.maximum(root, 0))
    nearest = np.full_like(root, _FAR)
    for t in ((-b - half) / a, (-b + half) / a):
        level = z - t * dz
        good = (root >= 0) & (level >= 0) & (level <= height) & (t > _NEAR)
        nearest = np.where(good & (t < nearest), t, nearest)
    return nearest


_MEETS = {
    "sphere": _meet_sphere,
    "cube": _meet_cube,
    "cylinder": _meet_cylinder,
    "cone": _meet_cone,
}


def _normals(stage: _Stage, frame: np.ndarray, owner: np.ndarray, point: Vector) -> Vector:
    """Unit vectors out of the solids at points on them; edges are rounded a little."""
    normal = tuple(np.zeros(len(frame), np.float32) for _ in range(3))
    for n, solid in enumerate(stage.solids):
        mine = np.flatnonzero(owner == n)
        frames = frame[mine]
        x, y, z = stage.local(n, frames, _take(point, mine))
        half = np.float32(solid.height / 2)
        z = z - half
        if solid.shape == "cone":
            away = _not_zero(np.sqrt(x * x + y * y))
            x, y, z = x / away, y / away, np.full_like(x, solid.radius / solid.height)
        elif solid.shape != "sphere":
            scale = np.float32(1 / solid.radius)
            x, y, z = x * scale, y * scale, z / half
            z = _beyond_bevel(np.abs(z)) * np.sign(z)
            if solid.shape == "cube":
                x = _beyond_bevel(np.abs(x)) * np.sign(x)
                y = _beyond_bevel(np.abs(y)) * np.sign(y)
            else:
                away = _not_zero(np.sqrt(x * x + y * y))
                out = _beyond_bevel(away) / away
                x, y = x * out, y * out
        unit, _ = _unit((x, y, z))
        for whole, part in zip(normal, stage.world(n, frames, unit), strict=True):
            whole[mine] = part
    return normal


def _beyond_bevel(x: np.ndarray) -> np.ndarray:
    return np.maximum(x - np.float32(1 - _BEVEL), 0)


def _first(met: np.ndarray, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    near, far = middle - half, middle + half
    distance = np.where(near > _NEAR, near, far)
    return np.where(met & (distance > _NEAR), distance, _FAR)


def _interval(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    distance = np.where(enter > _NEAR, enter, leave)
    return np.where((enter < leave) & (distance > _NEAR), distance, _FAR)


# Which samples to look at.


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


def _boxes(scenery: View, corners: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rectangles of samples around points [F, any, 3]: [F, 4], top, bottom, left, right."""
    boxes = []
    width = scenery.size * scenery.samples
    for points in corners:
        seen = (points - _EYE) @ scenery.to_camera.T
        at = _FOCAL_LENGTH * seen[..., :2] / seen[..., 2:]
        across = (at[..., 0] + 1) * (width / 2) - 0.5
        down = (1 - at[..., 1]) * (width / 2) - 0.5
        edges = [
            np.ceil(down.min(1)), np.floor(down.max(1)) + 1,
            np.ceil(across.min(1)), np.floor(across.max(1)) + 1,
        ]  # fmt: skip
        boxes.append(np.clip(np.stack(edges, -1), 0, width).astype(np.int64))
    return boxes


def _inside(boxes: np.ndarray, scenery: View) -> tuple[np.ndarray, np.ndarray]:
    """All samples within the box of their frame: frames and rays, one entry for each."""
    width = scenery.size * scenery.samples
    top, bottom, left, right = boxes.T
    rows = np.maximum(bottom - top, 0)
    columns = np.maximum(right - left, 0)
    # First every row of every box, then every sample of every row.
    frame = np.repeat(np.arange(len(boxes)), rows)
    row = top[frame] + _count_up(rows)
    length = columns[frame]
    start = row * width + left[frame]
    return np.repeat(frame, length), np.repeat(start, length) + _count_up(length)


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of the lengths.

    >>> _count_up(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)


# Vectors.


def _take(vector: Vector, where: np.ndarray) -> Vector:
    return tuple(x[where] for x in vector)


def _dot(a: Vector, b: Vector) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _plus(point: Vector, direction: Vector, share) -> Vector:
    share = np.float32(share) if isinstance(share, float) else share
    return tuple(p + share * d for p, d in zip(point, direction, strict=True))


def _towards(start: Vector, goal: Vector) -> tuple[Vector, np.ndarray]:
    """Unit vectors from one to the other, and the square of the distance."""
    return _unit(tuple(b - a for a, b in zip(start, goal, strict=True)))


def _unit(vector: Vector) -> tuple[Vector, np.ndarray]:
    square = _dot(vector, vector)
    inverse = 1 / np.sqrt(square)
    return tuple(x * inverse for x in vector), square


def _not_zero(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.float32(1e-9), np.float32(1e-9), x)
