"""What stands, slides, turns and is carried about in a scene of moving solids.

Scenes follow CATER (Girdhar and Ramanan, 2020): 5 to 10 solids on a floor, 24 frames a second. Time
is cut into slots of 30 frames. In every slot each solid rests or does one thing, which begins and
ends gently somewhere within the slot: it slides, it turns, or it is picked up and put down. A cone
may be put over a smaller solid; then both slide together until the cone is picked up again. Nothing
ever touches anything else: ways that come too near another solid are not taken.

A `Scene` is planned once, slot after slot, from a generator; where everything is in frame t then
follows from t alone.
"""

import math
from typing import NamedTuple

import numpy as np

FRAMES_PER_SLOT = 30
SHAPES = ("sphere", "cube", "cylinder", "cone")
_RADII = (0.35, 0.5, 0.7)  # of solids: small, medium, large
_HALF_WIDTH = 3.0  # centres stay within this of the middle of the floor, in both directions
_MARGIN = 0.12  # at least this between two solids
_LIFT = 2.0  # how high a solid is carried: above the highest one
_TRIES = 12  # goals that are tried before a solid rests instead

Point = tuple[float, float]

# CLEVR's colours, linear RGB.
COLOURS = {
    "grey": (0.28, 0.28, 0.28),
    "red": (0.62, 0.06, 0.06),
    "blue": (0.07, 0.15, 0.72),
    "green": (0.05, 0.34, 0.05),
    "brown": (0.40, 0.17, 0.05),
    "purple": (0.38, 0.06, 0.56),
    "cyan": (0.07, 0.56, 0.58),
    "yellow": (0.86, 0.66, 0.06),
}


class Solid(NamedTuple):
    """One solid, standing on its base."""

    shape: str  # one of SHAPES
    radius: float  # of its base, or of the sphere; half the width of a cube
    height: float
    colour: tuple[float, float, float]  # linear RGB from 0 to 1
    metal: bool  # or rubber

    @property
    def reach(self) -> float:
        """How far it reaches from its axis, whichever way it is turned."""
        return self.radius * (2**0.5 if self.shape == "cube" else 1)


class Places(NamedTuple):
    """Where N solids are in F frames."""

    centre: np.ndarray  # float64 [F, N, 3], the middle of the base; z is 0 on the floor
    angle: np.ndarray  # float64 [F, N], turned about the vertical axis, radians


class _Slot(NamedTuple):
    """What N solids do in one slot; arrays of N."""

    begin: np.ndarray  # frames after the start of the slot
    end: np.ndarray
    start: np.ndarray  # [N, 2]
    goal: np.ndarray  # [N, 2]
    angle: np.ndarray  # at the begin
    turn: np.ndarray  # how far it turns
    lifted: np.ndarray  # bool


class Scene:
    """The solids of one scene and all that happens to them.

    Args:
      rng: everything is drawn from it, in order, as far as frames are asked for.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self.solids, self._at = _set_up(rng)
        self._angle = rng.uniform(0, 2 * np.pi, len(self.solids))
        self._inside = [-1] * len(self.solids)  # the cone over each solid
        self._slots: list[_Slot] = []

    def places(self, frames: np.ndarray) -> Places:
        """Where everything is in some frames, [F] integers from 0; they may be fractions, too."""
        frames = np.asarray(frames, np.float64)
        slots = (frames // FRAMES_PER_SLOT).astype(int)
        while len(self._slots) <= slots.max():
            self._slots.append(self._plan())
        slot = _Slot(*map(np.stack, zip(*[self._slots[s] for s in slots], strict=True)))
        since = (frames - slots * FRAMES_PER_SLOT)[:, None] - slot.begin
        share = np.clip(since / (slot.end - slot.begin), 0, 1)
        # A solid that is carried first goes up, and is almost up before it goes sideways.
        sideways = np.where(slot.lifted, _ease((share - 0.2) / 0.6), _ease(share))
        height = np.where(slot.lifted, _LIFT * _ease(np.minimum(share, 1 - share) / 0.4), 0)
        ground = slot.start + sideways[..., None] * (slot.goal - slot.start)
        return Places(
            np.concatenate([ground, height[..., None]], -1), slot.angle + _ease(share) * slot.turn
        )

    def _plan(self) -> _Slot:
        """Decides the next slot, and moves everything to its end."""
        rng, solids, inside = self._rng, self.solids, self._inside
        num = len(solids)
        start, angle = self._at.copy(), self._angle.copy()
        goal, turn, lifted = start.copy(), np.zeros(num), np.zeros(num, bool)
        begin = rng.uniform(0, 5, num)
        end = begin + rng.uniform(21, FRAMES_PER_SLOT - 5, num)
        busy = [False] * num  # does something in this slot, or something happens to it
        actions = rng.choice(
            ["rest", "slide", "turn", "carry", "cover"], num, p=[0.25, 0.35, 0.1, 0.15, 0.15]
        )
        for n in rng.permutation(num):
            if busy[n] or inside[n] >= 0:
                continue
            held = [m for m in range(num) if _is_in(inside, m, n)]
            action = actions[n]
            if action == "turn" and solids[n].shape == "cube":
                turn[n] = rng.choice([-1, 1]) * rng.uniform(0.5, 1) * np.pi
                busy[n] = True
            elif action == "slide" or (action == "carry" and held and rng.random() < 0.5):
                place = self._free_goal(n, start, goal, held, along=True)
                if place is not None:
                    for m in [n, *held]:
                        goal[m], busy[m] = place, True
                        begin[m], end[m] = begin[n], end[n]
                    if solids[n].shape == "cube" and rng.random() < 0.5:
                        turn[n] = rng.uniform(-0.5, 0.5) * np.pi
            elif action == "cover" and not held and (under := self._fitting(n, busy)):
                m = rng.choice(under)
                with_it = [k for k in range(num) if k == m or _is_in(inside, k, m)]
                if self._is_free(n, start, goal, start[m], with_it, along=False):
                    goal[n], lifted[n] = start[m], True
                    busy[n] = busy[m] = True
                    inside[m] = n
            elif action in ("carry", "cover"):
                place = self._free_goal(n, start, goal, [], along=False)
                if place is not None:
                    goal[n], lifted[n], busy[n] = place, True, True
                    for m in held:
                        busy[m] = True
                        inside[m] = -1 if inside[m] == n else inside[m]
        self._at, self._angle = goal, angle + turn
        return _Slot(begin, end, start, goal.copy(), angle, turn, lifted)

    def _fitting(self, n: int, busy: list[bool]) -> list[int]:
        """The solids that the cone n could be put over now."""
        return [
            m
            for m, solid in enumerate(self.solids)
            if m != n and not busy[m] and self._inside[m] < 0 and fits(solid, self.solids[n])
        ]

    def _free_goal(self, n, start, goal, without, *, along) -> np.ndarray | None:
        for _ in range(_TRIES):
            place = self._rng.uniform(-_HALF_WIDTH, _HALF_WIDTH, 2)
            away = math.hypot(*(place - start[n]))
            if 0.8 < away < 3 and self._is_free(n, start, goal, place, without, along=along):
                return place
        return None

    def _is_free(self, n, start, goal, place, without, *, along) -> bool:
        """Whether solid n may go to `place`: on the floor (`along`), or through the air."""
        begin, place = start[n].tolist(), place.tolist()
        others = zip(self.solids, start.tolist(), goal.tolist(), strict=True)
        for m, (solid, its_start, its_goal) in enumerate(others):
            if m == n or m in without:
                continue
            least = self.solids[n].reach + solid.reach + _MARGIN
            # Through the air it passes over what stands there, but not over what moves.
            ours = begin if along or its_start != its_goal else place
            if _distance(ours, place, its_start, its_goal) < least:
                return False
        return True


def fits(solid: Solid, cone: Solid) -> bool:
    """Whether `cone` is one and hides `solid` completely when it is put over it."""
    if cone.shape != "cone":
        return False
    slope = cone.radius / cone.height
    if solid.shape == "sphere":
        # The radius of the sphere that touches the cone's base and side.
        return solid.radius < 0.95 * cone.radius / (slope + (1 + slope**2) ** 0.5)
    top = 0 if solid.shape == "cone" else solid.reach
    width_at_top = cone.radius - slope * solid.height
    return solid.reach < 0.95 * cone.radius and top < 0.95 * width_at_top and width_at_top > 0


def _set_up(rng: np.random.Generator) -> tuple[list[Solid], np.ndarray]:
    """Draws the solids and where they stand at first, [N, 2]."""
    num = int(rng.integers(5, 11))
    # At least one large cone and something small, so that there is something to cover.
    shapes = ["cone", *rng.choice(SHAPES, num - 1)]
    radii = [_RADII[2], _RADII[0], *rng.choice(_RADII, num - 2)]
    names = rng.choice(list(COLOURS), num)
    metal = rng.random(num) < 0.5
    solids = [
        _solid(shape, float(radius), COLOURS[name], bool(is_metal))
        for shape, radius, name, is_metal in zip(shapes, radii, names, metal, strict=True)
    ]
    places: list[np.ndarray] = []
    tries = 0
    while len(places) < num:
        tries += 1
        if tries % 200 == 0:  # no room for the last ones: start again
            places.clear()
        place = rng.uniform(-_HALF_WIDTH, _HALF_WIDTH, 2)
        reach = solids[len(places)].reach
        if all(
            np.hypot(*(place - other)) > reach + solid.reach + 2 * _MARGIN
            for other, solid in zip(places, solids, strict=False)
        ):
            places.append(place)
    return solids, np.stack(places)


def _solid(shape: str, radius: float, colour: tuple, metal: bool) -> Solid:
    if shape == "cube":  # as wide across its corners as the others are
        radius /= 2**0.5
    if shape == "cone":  # a little larger, to have room for others
        radius *= 1.15
    return Solid(shape, radius, 2 * radius, colour, metal)


def _is_in(inside: list[int], m: int, n: int) -> bool:
    """Whether solid m is under n, or under something under n."""
    while inside[m] >= 0:
        m = inside[m]
        if m == n:
            return True
    return False


def _ease(share: np.ndarray) -> np.ndarray:
    """From 0 to 1, at rest at both ends."""
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


def _distance(a: Point, b: Point, c: Point, d: Point) -> float:
    """The distance between the segments ab and cd in the plane.

    In plain floats: NumPy takes ten times as long for two numbers.

    >>> _distance((0, 0), (2, 0), (1, 1), (1, 3))
    1.0
    >>> _distance((0, 0), (2, 0), (1, -1), (1, 3))
    0.0
    """
    if _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0:
        return 0.0
    return min(
        _to_segment(a, b, c), _to_segment(a, b, d), _to_segment(c, d, a), _to_segment(c, d, b)
    )


def _side(p: Point, q: Point, r: Point) -> float:
    """Above 0 where r is to the left of the way from p to q, below 0 to the right."""
    return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])


def _to_segment(p: Point, q: Point, r: Point) -> float:
    """The distance of the point r from the segment pq."""
    x, y = q[0] - p[0], q[1] - p[1]
    square = x * x + y * y
    share = ((r[0] - p[0]) * x + (r[1] - p[1]) * y) / square if square else 0.0
    share = min(max(share, 0.0), 1.0)
    return math.hypot(p[0] + share * x - r[0], p[1] + share * y - r[1])
