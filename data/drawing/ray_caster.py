"""Draws solids on a floor: one ray for each sample of a pixel, and exact intersections.

The camera, the floor and the lamps stand still, as in CLEVR and CATER. One lamp throws shadows, two
fill them up; metal mirrors the floor, the lamps and its neighbours. With n x n samples a pixel,
each sample sees another spot of the lamp, so that shadows have soft edges.

Only samples near a solid or its shadow are worked on, those of many frames at once. Whatever
happens to a sample is addition, multiplication, division or a square root in single precision, in
an order that does not depend on what else is drawn: a frame has the same bits whether it is drawn
alone or with others.
"""

from collections.abc import Sequence

import numpy as np

from data.drawing.intersections import FAR, NEAR
from data.drawing.lights import FLOOR, KEY, light, surroundings
from data.drawing.solid_scenes import Places, Solid
from data.drawing.stage import Stage, normals
from data.drawing.vectors import Vector, dot, plus, take, towards
from data.drawing.views import EYE, View, boxes_around, pixels_of, samples_inside


def draw(scenery: View, solids: Sequence[Solid], places: Places) -> np.ndarray:
    """Draws F frames of a scene.

    Args:
      scenery: from `views.view`.
      solids: N of them.
      places: where they are in each of the frames.

    Returns:
      uint8 [F, size, size, 3], sRGB but for a gamma of exactly 2.
    """
    num_frames, num_rays = len(places.centre), len(scenery.ray[0])
    stage = Stage(solids, places)
    depth = np.full(num_frames * num_rays, FAR, np.float32)
    owner = np.full(num_frames * num_rays, -1, np.int8)
    eye = tuple(np.float32(x) for x in EYE)
    for n, boxes in enumerate(boxes_around(scenery, stage.corners)):
        frame, ray = samples_inside(boxes, scenery)
        distance = stage.distance(n, frame, eye, take(scenery.ray, ray))
        sample = frame * num_rays + ray
        nearer = distance < depth[sample]
        depth[sample[nearer]] = distance[nearer]
        owner[sample[nearer]] = n

    seen = np.flatnonzero(owner >= 0)
    radiance = _shade(scenery, stage, seen, owner[seen], depth[seen])
    # Clipped before the mean: a highlight brighter than white has no jagged edge then.
    np.minimum(radiance, 1, out=radiance)
    pixel = pixels_of(scenery, seen)
    shown = np.bincount(pixel, minlength=num_frames * scenery.size**2).astype(np.float32)
    num_samples = np.float32(scenery.samples**2)
    floor = (num_samples - shown) * _lit_floor(scenery, stage, owner, shown)
    picture = np.empty((len(shown), 3), np.uint8)
    for channel in range(3):
        total = np.bincount(pixel, radiance[:, channel], len(shown)).astype(np.float32)
        mean = (total + floor * FLOOR[channel]) / num_samples
        picture[:, channel] = np.sqrt(np.minimum(mean, 1)) * 255 + np.float32(0.5)
    return picture.reshape(num_frames, scenery.size, scenery.size, 3)


def _lit_floor(scenery: View, stage: Stage, owner: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """How bright the floor is in every pixel, [F * P]; `shown` samples of it show solids."""
    num_rays = len(scenery.ray[0])
    num_frames = len(owner) // num_rays
    dark = np.zeros(len(owner), bool)
    for n, corners in enumerate(stage.corners):
        # The shadow lies within those of the corners, from the outermost spots of the lamp.
        lamps = scenery.lamps[:, None, None]
        share = lamps[..., 2:] / (lamps[..., 2:] - corners)[..., 2:]
        shadows = (lamps + share * (corners - lamps)).transpose(1, 0, 2, 3)
        [boxes] = boxes_around(scenery, [shadows.reshape(len(corners), -1, 3)])
        frame, ray = samples_inside(boxes, scenery)
        sample = frame * num_rays + ray
        open_floor = np.flatnonzero((owner[sample] < 0) & ~dark[sample])
        frame, ray, sample = frame[open_floor], ray[open_floor], sample[open_floor]
        point = take(scenery.floor, ray)
        to_lamp, _ = towards(point, take(scenery.lamp, ray))
        dark[sample] = stage.distance(n, frame, point, to_lamp) < FAR
    # The pixels of a window see all spots of the lamp once: their mean is a smooth shadow.
    pixel = pixels_of(scenery, np.flatnonzero(dark))
    num_dark = np.bincount(pixel, minlength=len(shown)).astype(np.float32)
    shape = (num_frames, scenery.size, scenery.size)
    num_floor = np.float32(scenery.samples**2) - shown
    shadow = _window(num_dark.reshape(shape)) / np.maximum(_window(num_floor.reshape(shape)), 1)
    hidden = _hidden_sky(stage, scenery.floor_middle, num_frames)
    ambient = scenery.floor_ambient * (1 - hidden)
    return (ambient + scenery.floor_key * (1 - shadow.reshape(num_frames, -1))).reshape(-1)


def _window(numbers: np.ndarray) -> np.ndarray:
    """Sums over windows of 2x2 pixels of [F, size, size], smaller at two borders.

    2 is `views.SPREAD`: the pixels of a window see every spot of the lamp once.
    """
    for axis in (1, 2):
        moved = np.zeros_like(numbers)
        to, of = [slice(None)] * 3, [slice(None)] * 3
        to[axis], of[axis] = slice(1, None), slice(None, -1)
        moved[tuple(to)] = numbers[tuple(of)]
        numbers = numbers + moved
    return numbers


def _hidden_sky(stage: Stage, point: Vector, num_frames: int) -> np.ndarray:
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
    scenery: View, stage: Stage, seen: np.ndarray, owner: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """The radiance [M, 3] of the samples `seen` that show a solid."""
    num_rays = len(scenery.ray[0])
    frame, ray_number = np.divmod(seen, num_rays)
    ray = take(scenery.ray, ray_number)
    point = tuple(np.float32(e) + depth * r for e, r in zip(EYE, ray, strict=True))
    normal = normals(stage, frame, owner, point)
    lifted = plus(point, normal, 4 * NEAR)
    # On solids shadows are sharp: nothing smooths the edges that the spots would leave.
    to_lamp, _ = towards(point, tuple(np.float32(x) for x in KEY))
    lit = dot(normal, to_lamp) > 0
    faces = np.flatnonzero(lit)
    frames, owners, start, way = (
        frame[faces],
        owner[faces],
        take(lifted, faces),
        take(to_lamp, faces),
    )
    for n in range(len(stage.solids)):
        near = stage.near(n, frames, start, way)
        near = near[owners[near] != n]
        met = stage.distance(n, frames[near], take(start, near), take(way, near)) < FAR
        lit[faces[near[met]]] = False
    key, shine, other = light(point, normal, ray)
    colour = stage.colour[owner]
    # Close to the floor less of the sky is seen.
    other = other * np.minimum(np.float32(0.55) + np.float32(0.6) * point[2], 1)
    diffuse = other + np.where(lit, key, 0)
    gloss = np.where(lit, np.float32(0.10) * shine[0], 0)
    radiance = colour * diffuse[:, None] + gloss[:, None]

    metal = np.flatnonzero(stage.metal[owner])
    if metal.size:
        glare = np.where(lit[metal], np.float32(2.2) * shine[1][metal], 0)[:, None]
        normal, ray = take(normal, metal), take(ray, metal)
        facing = -dot(normal, ray)
        mirrored = plus(ray, normal, 2 * facing)
        mirror = _mirror(
            scenery, stage, frame[metal], owner[metal], take(lifted, metal), mirrored
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
    stage: Stage,
    frame: np.ndarray,
    owner: np.ndarray,
    start: Vector,
    ray: Vector,
) -> np.ndarray:
    """What metal mirrors: neighbours without their shadows, else the floor or the lamps."""
    nearest = np.full(len(frame), FAR, np.float32)
    whose = np.full(len(frame), -1, np.int8)
    for n in range(len(stage.solids)):
        near = stage.near(n, frame, start, ray)
        near = near[owner[near] != n]
        distance = stage.distance(n, frame[near], take(start, near), take(ray, near))
        nearer = distance < nearest[near]
        nearest[near[nearer]] = distance[nearer]
        whose[near[nearer]] = n
    radiance = surroundings(start, ray)
    hit = np.flatnonzero(whose >= 0)
    if hit.size:
        point = plus(take(start, hit), take(ray, hit), nearest[hit])
        normal = normals(stage, frame[hit], whose[hit], point)
        key, _, other = light(point, normal)
        radiance[hit] = stage.colour[whose[hit]] * (key + other)[:, None]
    return radiance
