"""Where a model is cut, in all its modes.

Training and evaluation are two programs. Each is cut in two at a place of its own, such that both
have the same leaves of the parameters and the state below it, and such that values of the same
shapes cross it. Then modules have the same parameters, and signals the same shapes, in both; and in
each mode the modules one after the other are the whole program of that mode.
"""

from __future__ import annotations

import difflib
import functools
import math
from typing import NamedTuple

import numpy as np

from sideways_jax.splitting.balance import balanced_cuts
from sideways_jax.splitting.costs import operations
from sideways_jax.splitting.names import Name, written
from sideways_jax.splitting.places import Places, can_travel
from sideways_jax.splitting.program import Program
from sideways_jax.splitting.tracing import Analysis, Mode, Tracer, operations_of
from sideways_jax.tools.programs import shape_of_variable


class Wish(NamedTuple):
    """How a model is to be cut.

    Attributes:
      modules: D, or None for the places where the model calls `boundary`.
      direct: whether what skips modules goes to its receivers directly.
      names: of the leaves of the parameters, then of the state, for messages.
      num_params: how many of them are parameters.
    """

    modules: int | None
    direct: bool
    names: tuple[Name, ...]
    num_params: int


def obstacle(analysis: Analysis, place: int, wish: Wish) -> str | None:
    """Why a program cannot be cut at a place; None if it can."""
    places = analysis.places
    if not 0 < place < places.program.size:
        return "no equation of the frame is on one side of it"
    for n, name in enumerate(wish.names):
        if places.holds(n, place):
            if n >= wish.num_params:
                return (
                    f"the state {written(name)!r} is used on both sides of it, and no two modules "
                    "share a state: cut elsewhere"
                )
            return (
                f"the parameter {written(name)!r} is used on both sides of it, and no two modules "
                "share parameters: cut elsewhere, or let it travel to the modules above as an "
                f"activation, carry=({written(name)!r},)"
            )
    if any(a < place <= b for a, b in places.draws):
        return (
            "random numbers are drawn from the same key on both sides of it, and modules have keys "
            "of their own: cut elsewhere, or draw from different keys (jax.random.split)"
        )
    for k in _sent(places, place, wish.direct):
        v = places.values[k].variable
        value = shape_of_variable(v)
        what = f"a value {value.dtype}{list(value.shape)} crosses it"
        if not can_travel(v):
            return (
                f"{what}, which has no gradient: cut elsewhere, or make it a floating-point array"
            )
        if analysis.axes[k] is None:
            return f"{what}, whose first axis is not that of the examples: cut elsewhere"
    if not _sent(places, place, wish.direct):
        return "nothing of the model crosses it"
    return None


def _sent(places: Places, place: int, direct: bool) -> list[int]:
    """The values that cross a place, but for the frame itself if it has a shortcut."""
    return [k for k in places.crossing[place] if not direct or places.values[k].made >= 0]


def possible(analysis: Analysis, wish: Wish) -> np.ndarray:
    """All places where `obstacle` is None."""
    places = analysis.places
    size = places.program.size
    against = np.zeros(size + 2, int)
    for a, b in [*zip(places.first, places.last, strict=True), *places.draws]:
        if a < b:  # The places after the first and up to the last.
            against[a + 1] += 1
            against[b + 1] -= 1
    blocked = np.cumsum(against)[: size + 1] > 0
    travels = [
        axes is not None and can_travel(value.variable)
        for value, axes in zip(places.values, analysis.axes, strict=True)
    ]
    for place in range(1, size):
        if not blocked[place]:
            sent = _sent(places, place, wish.direct)
            blocked[place] = not sent or not all(travels[k] for k in sent)
    return np.flatnonzero(~blocked[1:size]) + 1


def first_cuts(train: Analysis, evaluation: Analysis, wish: Wish, batch: int) -> tuple[int, ...]:
    """The places where the program of training is cut; `cuts_in` has those of all others.

    Args:
      train, evaluation: of the two modes.
      wish: how it is to be cut.
      batch: the number of examples for which bytes are counted.

    Raises:
      ValueError: if the model cannot be cut like that, with the reason and what can be done.
    """
    if wish.modules is None:
        return _marked(train, evaluation, wish)
    both = matching(train, evaluation, wish, evaluation.batch)
    in_evaluation = set(possible(evaluation, wish).tolist())
    found = [c for c in possible(train, wish).tolist() if both.get(c) in in_evaluation]
    program = train.places.program
    costs = costs_of(program)
    crossing = _worth(costs, {place: bytes_at(train, place, batch) for place in found})
    if len(crossing) < wish.modules - 1:
        raise ValueError(_too_many(train, wish, len(crossing)))
    first = train.places.first[: wish.num_params]
    below = [int(np.sum(first < place)) for place in (*crossing, program.size)]
    return balanced_cuts(costs, [*crossing], [*crossing.values()], wish.modules, below=below)


def costs_of(program: Program) -> list[float]:
    """The operations of every fixed equation."""
    return [operations(program.equations[n]) for n in program.fixed]


def _worth(costs: list[float], crossing: dict[int, int]) -> dict[int, int]:
    """Those places between which there is something to compute; of equal ones that of fewest bytes.

    Args:
      costs: of every equation.
      crossing: the places and the bytes that cross there.
    """
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    best: dict[float, int] = {}
    for place, size in crossing.items():
        below = float(sums[place])
        if 0 < below < sums[-1] and size < crossing.get(best.get(below, -1), np.inf):
            best[below] = place
    return {place: crossing[place] for place in sorted(best.values())}


def _marked(train: Analysis, evaluation: Analysis, wish: Wish) -> tuple[int, ...]:
    marks, others = train.places.program.marks, evaluation.places.program.marks
    if not marks and not others:
        raise ValueError(
            "the model calls sideways_jax.boundary nowhere: say into how many modules it is to be "
            "cut, split(model, frame, modules=4), or call boundary(x) in it where modules end"
        )
    if len(marks) != len(others):
        raise ValueError(
            f"the model calls boundary {len(marks)} times in training and {len(others)} times in "
            "evaluation: call it in both at the same places"
        )
    for n, (one, other) in enumerate(zip(marks, others, strict=True)):
        for analysis, place, when in ((train, one, "training"), (evaluation, other, "evaluation")):
            why = obstacle(analysis, place, wish)
            if not why and n and place == analysis.places.program.marks[n - 1]:
                why = "it is at the same place as the one before"
            if why:
                raise ValueError(f"the model cannot be cut at boundary {n} ({when}): {why}")
    return marks


def _too_many(analysis: Analysis, wish: Wish, places: int) -> str:
    """The message for more modules than there can be."""
    program = analysis.places.program
    costs = costs_of(program)
    total = sum(costs) or 1.0
    largest = int(np.argmax(costs)) if costs else 0
    lines = [
        f"modules={wish.modules}: this model can be cut at {places} places, into {places + 1} "
        f"modules at most; give modules={places + 1} or fewer"
    ]
    if costs and costs[largest] > 0.5 * total:
        name = program.equations[program.fixed[largest]].primitive.name
        lines.append(
            f"{costs[largest] / total:.0%} of its operations are in one equation, {name!r}, which "
            "stays in one piece (a loop over layers can be a Python loop instead)"
        )
    spans = analysis.places.last[: wish.num_params] - analysis.places.first[: wish.num_params]
    if len(spans) and spans.max() > 0.5 * program.size:
        name = written(wish.names[int(np.argmax(spans))])
        lines.append(
            f"the parameter {name!r} is used at both ends of it: let it travel as an activation, "
            f"carry=({name!r},)"
        )
    return ". ".join(lines)


def bytes_at(analysis: Analysis, place: int, batch: int) -> int:
    """The bytes of all values that cross a place, for a batch of so many examples."""
    return sum(
        math.prod(analysis.shape(k, batch)) * analysis.dtype(k).itemsize
        for k in analysis.places.crossing[place]
    )


def matching(one: Analysis, other: Analysis, wish: Wish, batch: int) -> dict[int, int]:
    """Places of two programs that can be cut alike, from those of the first to those of the second.

    Both have the same leaves below, and values of the same shapes cross both, for a batch of so
    many examples, that of the second program. The order of places is kept.
    """
    left, right = one.places, other.places
    end = left.program.size, right.program.size
    common = (left.first < end[0]) & (right.first < end[1])
    signs = [
        [_sign(analysis, place, common, batch) for place in range(analysis.places.program.size + 1)]
        for analysis in (one, other)
    ]
    matcher = difflib.SequenceMatcher(None, signs[0], signs[1], autojunk=False)
    return {
        block.a + n: block.b + n
        for block in matcher.get_matching_blocks()
        for n in range(block.size)
    }


def _sign(analysis: Analysis, place: int, common: np.ndarray, batch: int) -> tuple:
    """What has to be the same at two places."""
    places = analysis.places
    program = places.program
    values = tuple((analysis.shape(k, batch), analysis.dtype(k)) for k in places.crossing[place])
    name = program.equations[program.fixed[place - 1]].primitive.name if place else ""
    return (places.first < place)[common].tobytes(), values, name


class Cutter:
    """Finds the places where the program of a mode is cut.

    Args:
      tracer: of the model.
      wish: how it is to be cut.
      train, evaluation: the modes for which `first_cuts` has decided.
    """

    def __init__(self, tracer: Tracer, wish: Wish, train: Mode, evaluation: Mode):
        self.tracer, self.wish, self.modes = tracer, wish, (train, evaluation)
        self.train = tracer.analysis(train)
        self.evaluation = tracer.analysis(evaluation)
        self.first = first_cuts(self.train, self.evaluation, wish, tracer.batch)
        self._cuts = functools.lru_cache(maxsize=64)(self._cuts_of)

    def cuts(self, mode: Mode, batch: int) -> tuple[Places, tuple[int, ...]]:
        """The program of a mode and a batch, and the D-1 places where it is cut.

        Raises:
          ValueError: if it has no such places.
        """
        places = self.tracer.places(mode, batch)
        return places, self._cuts(mode, batch, places)

    def _cuts_of(self, mode: Mode, batch: int, places: Places) -> tuple[int, ...]:
        if self.wish.modules is None:
            return places.program.marks
        analysis = self.tracer.analysis(mode)
        if operations_of(places) != operations_of(analysis.places):  # A batch of one, perhaps.
            here = Analysis(batch, places, (None,) * len(places.values))
            return self._matched(self.train, here, batch)
        if analysis is self.train:
            return self.first
        return self._matched(self.train, analysis, analysis.batch)

    def _matched(self, one: Analysis, other: Analysis, batch: int) -> tuple[int, ...]:
        found = matching(one, other, self.wish, batch)
        missing = [place for place in self.first if place not in found]
        if missing:
            raise ValueError(
                f"the model was cut by its program for training, and its program for {batch} "
                f"examples in another mode has nothing that matches {len(missing)} of the "
                f"{len(self.first)} cuts: call sideways_jax.boundary in the model to say where"
            )
        return tuple(found[place] for place in self.first)
