"""Random networks, clips, resets, meshes, schedules and optimizers against the literal reference.

A case is a network in a setting, and a clip (with resets, if it is a stream) on which every number
that comes out has to be that of `reference.py`, in float64 to 1e-10, with NaN in every bubble. The
setting says what is asked for (rule, targets, updates, optimizer) and where it runs (execution,
mesh, schedule). Compiling is what takes time, so that every network gets several clips.

In CI the cases are always the same 200. `PROPERTY_CASES=5000 pytest -q <this file>` draws others,
and makes what fails as small as it can; what it then prints is to become an entry of `FOUND`.
"""

import itertools
import os

import hypothesis
import jax
import pytest
from hypothesis import strategies as st

from tests.sideways_jax import random_cases, random_networks
from tests.sideways_jax.random_cases import (
    CALLS,
    OPTIMIZERS,
    Data,
    EpisodeCase,
    Place,
    StreamCase,
    check,
)
from tests.sideways_jax.random_networks import Problem

IN_CI = 200
BY_HAND = int(os.environ.get("PROPERTY_CASES", "0"))
CLIPS = 3 if not BY_HAND else 2


def _cases(in_ci):
    """As many cases as are drawn in CI, or by hand the same share of what the environment says.

    `CLIPS` of them, with the same network and setting, are one example for hypothesis.
    """
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    return hypothesis.settings(
        max_examples=-(-in_ci * (BY_HAND or IN_CI) // (CLIPS * IN_CI)),
        derandomize=not BY_HAND,
        phases=[*phases, hypothesis.Phase.shrink] if BY_HAND else phases,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.fixture(autouse=True)
def _exact_and_quick(x64, quick_compile):
    """In double precision, with few optimisations; optax multiplies integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# What is drawn ----------------------------------------------------------------------------------


class _Choices:
    """Choices out of bytes, one for each; when they are used up, the first option every time.

    A case is drawn as one string of bytes, not as a strategy made of strategies: of those,
    hypothesis draws one afresh and then copies parts of it around for the next few, and every such
    variation would have to be compiled. Options begin with the simplest, to which cases shrink.
    """

    def __init__(self, octets):
        self._octets = iter(octets)

    def of(self, *options):
        return options[next(self._octets, 0) * len(options) // 256]

    def up_to(self, largest, smallest=0):
        return self.of(*range(smallest, largest + 1))


def _drawn(make_case, **options):
    """The strategy of `(case, several data)`, for a case that `make_case(choices)` gives."""

    def draw(octets):
        choose = _Choices(octets)
        case = make_case(choose, **options)
        return case, tuple(_data(choose, case) for _ in range(CLIPS))

    return st.binary(min_size=80, max_size=80).map(draw)


def _problem(choose, *, feedback=True, mixing=True, singular=True):
    depth = choose.of(2, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 6, 7)
    frame = choose.of("vectors", "vectors", "bytes", "pair")
    fork = choose.of(*[depth] * depth, *range(depth))  # `depth`: nowhere
    join = choose.up_to(depth, fork + 1) if fork < depth else depth
    singular = random_networks.SINGULAR if choose.of(False, True) and singular else ()
    bodies = (*random_networks.BODIES, *singular, *singular)
    extras = (
        *[None] * 4,
        *random_networks.PLAIN_EXTRAS,
        *(random_networks.FEEDBACK if feedback else ()),
        *(random_networks.MIXING if mixing else ()),
    )
    pairs = [(j, i) for i in range(depth) for j in range(-1, i - 1)]
    some = choose.up_to(6) if pairs and choose.of(False, False, True) else 0
    shortcuts = tuple(dict.fromkeys(choose.of(*pairs) for _ in range(some)))
    modules = []
    for i in range(depth):
        words = [{"bytes": "floats", "pair": "both"}.get(frame)] if i == 0 else []
        words.append("merge" if any(i == receiver for _, receiver in shortcuts) else None)
        words.append("join" if i == join else None)
        if i < depth - 1:
            words.append(choose.of(*bodies))
        else:
            words.append(choose.of(None, None, *singular))
            words.append(f"linear {random_networks.NUM_OUTPUTS}")
        words.append(choose.of(*extras))
        words.append("fork" if i == fork else None)
        modules.append(", ".join(word for word in words if word))
    loss = choose.of("squares", "labels", "parts")
    problem = Problem(tuple(modules), frame, loss, shortcuts=shortcuts)
    if problem.uses(random_networks.SINGULAR):
        # Dropout gives zeros, for which they have no value; loops of sines come close to them, so
        # that gradients of 1e5 and more take rounding errors to the first digit within three steps.
        modules = [words.replace("dropout", "keys").replace("loop", "sine") for words in modules]
    return problem._replace(modules=tuple(modules))


def _mesh(choose, problem, execution, *, data=True):
    data = choose.of(1, 2) if data else 1
    depth = choose.up_to(min(problem.depth, jax.device_count() // data), 1)
    groups = None
    if choose.of(False, True):
        left, groups = problem.depth, []
        for others in range(depth - 1, -1, -1):
            groups.append(choose.up_to(left - others, 1) if others else left)
            left -= groups[-1]
        groups = tuple(groups)
    return Place(execution, depth, data, groups)


def _with_batches(choose, problem, place):
    """The problem with a batch of 1 to 3 examples for every replica.

    Where gradients go through narrow types, their sums have to be divided by powers of 2.
    """
    three = place.data == 1 and not problem.uses(("fork",))
    rows = choose.of(*((2, 2, 3) if three else (2, 2, 1)))
    return problem._replace(batch=rows * place.data)


def _episode_case(choose, *, training=False):
    rule, execution = choose.of(
        ("sideways", "scan"),
        ("sideways", "time_parallel"),
        ("sideways", "depth_sharded"),
        ("pipelined_backprop", "scan"),
        ("pipelined_backprop", "time_parallel"),
        ("pipelined_backprop", "depth_sharded"),
        ("sideways", "program_per_device"),
        ("pipelined_backprop", "program_per_device"),
        ("backprop", "program_per_device"),
        ("backprop", "depth_sharded"),
        ("backprop", "depth_sharded"),
        ("backprop", "scan"),
        ("backprop", "time_parallel"),
        *([] if training else [("sideways", "steps")]),
    )
    problem = _problem(choose, feedback=execution != "time_parallel")
    place = Place(execution, recompute=choose.of(True, False))
    if place.on_mesh:
        place = _mesh(choose, problem, execution)._replace(recompute=place.recompute)
    if place.on_mesh and rule == "backprop":
        place = place._replace(schedule=choose.of("blocking", "gpipe", "1f1b"))
    shortest = 1 if rule == "backprop" else 2 * problem.depth - 1
    longer = choose.of(2, 0, 1, 4)
    return EpisodeCase(
        _with_batches(choose, problem, place),
        place,
        rule,
        target=choose.of("stream", "origin"),
        num_frames=shortest + longer,
        train=training or choose.of(True, True, True, False),
        optimizer=choose.of(*OPTIMIZERS) if training else None,
    )


def _stream_case(choose, *, mixing=False):
    """On a mesh without replicas, if there is to be a module that mixes examples."""
    places = "scan", "depth_sharded", "program_per_device", "depth_sharded", "blocking"
    execution = "depth_sharded" if mixing else choose.of(*places)
    in_step = execution == "blocking"  # No example is a bubble while others are not.
    exact = not mixing and not in_step and choose.of(False, False, True)
    problem = _problem(
        choose,
        mixing=in_step,
        # Nor with examples that mix: the norm of two equal ones is zero.
        singular=in_step or (not mixing and "singular bubbles" not in random_cases.KNOWN_FAILURES),
    )
    if mixing:
        modules = list(problem.modules)
        modules[choose.up_to(problem.depth - 1)] += f", {random_networks.MIXING[0]}"
        problem = problem._replace(modules=tuple(modules))
    place = Place(execution)
    if place.on_mesh:
        place = _mesh(choose, problem, execution, data=not mixing)
    elif exact and choose.of(False, True):
        place = place._replace(recompute=choose.of(True, False), stash_weights=True)
    update_every = choose.of(1, 2, 3)
    # Two calls are long enough for all modules to be trained, or to be trained again.
    frames = choose.of(problem.depth, 2 * problem.depth) + choose.up_to(2)
    return StreamCase(
        _with_batches(choose, problem, place),
        place,
        choose.of("stream", "origin"),
        -(-frames // update_every) * update_every,
        update_every,
        choose.of(*OPTIMIZERS),
        "pipelined_backprop" if exact else "sideways",
    )


def _data(choose, case):
    """At some steps all examples of a stream start anew, so that modules go untrained."""
    resets, batch = set(), case.problem.batch
    for _ in range(choose.up_to(4) if isinstance(case, StreamCase) else 0):
        t, b = choose.up_to(CALLS * case.num_frames - 1), choose.up_to(batch)
        resets |= {(t, n) for n in range(batch) if b in (n, batch)}
    return Data(choose.up_to(255), tuple(sorted(resets)))


# Properties -------------------------------------------------------------------------------------


def _check_all(drawn):
    hypothesis.note(f"for FOUND: {drawn!r}")
    case, several = drawn
    for data in several:
        check(case, data)
    if next(_COUNT) % 100 == 0:
        random_cases.forget_programs()


_COUNT = itertools.count(1)


@_cases(in_ci=88)
@hypothesis.given(_drawn(_episode_case))
def test_episodes(drawn):
    _check_all(drawn)


@_cases(in_ci=36)
@hypothesis.given(_drawn(_episode_case, training=True))
def test_training(drawn):
    _check_all(drawn)


@_cases(in_ci=64)
@hypothesis.given(_drawn(_stream_case))
def test_streams(drawn):
    _check_all(drawn)


@_cases(in_ci=12)
@hypothesis.given(_drawn(_stream_case, mixing=True))
def test_streams_of_modules_that_mix_examples(drawn):
    _check_all(drawn)


# What failed once -------------------------------------------------------------------------------

_UNIT = Problem(("dense 3", "unit, linear 2"))
_ROOT = Problem(("dense 3", "root, dense 3", "linear 2"), batch=4)
_ONE_RESET = Data(0, ((1, 0),))
FOUND = {
    "singular bubbles": [
        (StreamCase(_UNIT, Place("scan"), "stream", 2, 1, "descent"), _ONE_RESET),
        (StreamCase(_UNIT, Place("depth_sharded", 2), "stream", 2, 1, "descent"), _ONE_RESET),
        (
            StreamCase(_ROOT, Place("depth_sharded", 2, 2), "origin", 4, 2, "clip, momentum"),
            Data(0, ((3, 0), (3, 1), (5, 2))),
        ),
    ],
    "what is kept on a mesh": [
        (
            StreamCase(
                Problem(
                    ("both, dense 3, keys", "gate, fork", "join, linear 2, counter"),
                    "pair", "parts", batch=4,
                ),
                Place("depth_sharded", 2, 2), "stream", 3, 1, "descent", "pipelined_backprop",
            ),
            Data(5, ((1, 1), (5, 0), (5, 1), (5, 2), (5, 3))),
        ),
    ],
}  # fmt: skip


def _found():
    for name, entries in FOUND.items():
        known = [pytest.mark.xfail(strict=True)] if name in random_cases.KNOWN_FAILURES else []
        for k, entry in enumerate(entries):
            yield pytest.param(*entry, marks=known, id=f"{name} {k}")


@pytest.mark.parametrize(("case", "data"), list(_found()))
def test_what_was_found(case, data):
    check(case, data)
