"""Random networks, clips, resets, meshes, schedules and optimizers against the literal reference.

A case is what hypothesis draws: a network and its setting, which is compiled once, and a few clips
(and resets) on which every number that comes out has to be that of `reference.py`, in float64 to
1e-10. Every bubble is NaN: in the pipeline as it starts, between two calls, and on a mesh in
everything that has not arrived and in the padding.

In CI the cases are always the same. `PROPERTY_CASES=5000 pytest -q tests/.../test_properties.py`
draws others, as many of each kind as it says, and makes what fails as small as it can; what was
found that way stays as an `@example`.
"""

import functools
import os
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from sideways_jax import depth_sharded, make_mesh, sharded_online, sharded_training, step
from tests.sideways_jax import random_networks, reference
from tests.sideways_jax.random_networks import Problem

TOLERANCE = 1e-10  # relative to the largest entry of a leaf, or to 1e-3 if that is smaller
PROGRAMS = 24  # how many stay compiled

# What the library is known to get wrong; such cases are not drawn. Empty is the goal.
#   "singular bubbles": an example that is a bubble runs through modules as zeros, so that a module
#     which is singular at zero makes the gradient of the batch NaN.
#   "NaN among integers": `depth_sharded.episode(bubble=NaN)` with backprop casts NaN to the type of
#     integers that a stage keeps, which NumPy warns of.
KNOWN_FAILURES = frozenset({"singular bubbles", "NaN among integers"})

BY_HAND = int(os.environ.get("PROPERTY_CASES", "0"))


def _cases(in_ci):
    """How many cases are drawn: those of CI, or by hand as many as the environment says."""
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    return hypothesis.settings(
        max_examples=BY_HAND or in_ci,
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


# Cases ------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a case runs: one of the executions, "steps" (see `_by_steps`), or a mesh."""

    execution: str
    depth: int = 1
    data: int = 1
    groups: tuple[int, ...] | None = None
    schedule: str | None = None
    recompute: bool = True

    @property
    def on_mesh(self):
        return self.execution == "depth_sharded"

    @property
    def replicas(self):
        return self.data if self.on_mesh else 1

    def mesh(self):
        return make_mesh(self.depth, self.data)

    def options(self):
        """Those of `episode_gradients` and `make_train_step`."""
        if not self.on_mesh:
            return {"execution": self.execution}
        return {"execution": "depth_sharded", "mesh": self.mesh(), "groups": self.groups}


class EpisodeCase(NamedTuple):
    """An episode; or training with an update after each, if there is an optimizer."""

    problem: Problem
    place: Place
    rule: str
    target: str
    num_frames: int
    train: bool = True
    optimizer: str | None = None


class StreamCase(NamedTuple):
    """Online learning in two calls of `num_frames` frames each."""

    problem: Problem
    place: Place
    target: str
    num_frames: int
    update_every: int
    optimizer: str


class Stream(NamedTuple):
    """Data of a stream: what the frames are drawn from, and the first frames of streams."""

    seed: int
    resets: tuple[tuple[int, int], ...]  # (step, example)


Optimizer = reference.Optimizer
OPTIMIZERS = {
    "descent": Optimizer(),
    "momentum": Optimizer("momentum", fade=0.5),
    "clip, momentum": Optimizer("momentum", clip=0.3),
    "clip, adam": Optimizer("adam", clip=0.2, decay=0.1),
    "adam": Optimizer("adam", fade=0.2),
    "clip, rms": Optimizer("rms", clip=0.3, decay=0.1, rate=0.02),
}


def _transformation(name):
    """The optax transformation with the same numbers."""
    one = OPTIMIZERS[name]
    direction = {
        "descent": optax.identity,
        "momentum": lambda: optax.trace(0.9),
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.99, eps=reference.EPSILON),
        "rms": lambda: optax.scale_by_rms(0.9, eps=reference.EPSILON, eps_in_sqrt=False),
    }[one.direction]()
    return optax.chain(
        optax.identity() if one.clip is None else optax.clip_by_global_norm(one.clip),
        direction,
        optax.add_decayed_weights(one.decay) if one.decay else optax.identity(),
        optax.scale_by_learning_rate(lambda n: one.rate / (1 + one.fade * n)),
    )


# What is drawn ----------------------------------------------------------------------------------


@st.composite
def _problems(draw, *, feedback=True, mixing=True, singular=True):
    depth = draw(st.sampled_from((2, 3, 1, 3, 2, 4, 5, 4, 6, 7)))
    bodies = random_networks.BODIES + (random_networks.SINGULAR * 2 if singular else ())
    extras = (
        (None,) * 4
        + random_networks.PLAIN_EXTRAS
        + (random_networks.FEEDBACK if feedback else ())
        + (random_networks.MIXING if mixing else ())
    )
    frame = draw(st.sampled_from(("vectors", "vectors", "bytes", "pair")))
    fork = draw(st.none() | st.integers(0, depth - 1))
    join = depth if fork is None else draw(st.integers(fork + 1, depth + 1))
    modules = []
    for i in range(depth):
        words = [{"vectors": None, "bytes": "floats", "pair": "both"}[frame] if i == 0 else None]
        words.append("join" if i == join else None)
        last = i == depth - 1
        words.append(f"linear {random_networks.NUM_OUTPUTS}" if last else
                     draw(st.sampled_from(bodies)))  # fmt: skip
        words.append(draw(st.sampled_from(extras)))
        if last and singular:
            words.insert(-2, draw(st.sampled_from((None, None, *random_networks.SINGULAR))))
        words.append("fork" if i == fork else None)
        modules.append(", ".join(word for word in words if word))
    loss = draw(st.sampled_from(("squares", "labels", "parts")))
    batch = draw(st.sampled_from((2, 4)))
    problem = Problem(tuple(modules), frame, loss, batch)
    if problem.uses(random_networks.SINGULAR):  # Dropout gives zeros, for which they have no value.
        modules = [words.replace("dropout", "keys") for words in modules]
    return problem._replace(modules=tuple(modules))


@st.composite
def _meshes(draw, problem, *, data=True):
    data = draw(st.sampled_from((1, 2))) if data else 1
    depth = draw(st.integers(1, min(problem.depth, jax.device_count() // data)))
    groups = None
    if draw(st.booleans()):
        ends = draw(st.sets(st.integers(1, problem.depth - 1), min_size=depth - 1,
                            max_size=depth - 1)) if depth > 1 else ()  # fmt: skip
        bounds = [0, *sorted(ends), problem.depth]
        groups = tuple(int(n) for n in np.diff(bounds))
    return Place("depth_sharded", depth, data, groups)


@st.composite
def _episodes(draw, *, training=False):
    problem = draw(_problems())
    rule = draw(st.sampled_from(("sideways", "sideways", "backprop")))
    one_device = ["scan"]
    if rule == "sideways" and not training:
        one_device.append("steps")
    if not problem.uses(random_networks.FEEDBACK):
        one_device.append("time_parallel")
    places = st.sampled_from(one_device).map(Place)
    place = draw(places | places | _meshes(problem))
    if place.on_mesh and rule == "backprop":
        schedule = draw(st.sampled_from(("blocking", "gpipe", "1f1b")))
        place = place._replace(schedule=schedule, recompute=draw(st.booleans()))
    longer = draw(st.sampled_from((0, 1, 2, 4)))
    return EpisodeCase(
        problem,
        place,
        rule,
        target=draw(st.sampled_from(("stream", "origin"))),
        num_frames=1 + longer if rule == "backprop" else 2 * problem.depth - 1 + longer,
        train=training or draw(st.sampled_from((True, True, True, False))),
        optimizer=draw(st.sampled_from(list(OPTIMIZERS))) if training else None,
    )


@st.composite
def _streams(draw, *, mixing=False):
    """With modules that mix examples, executions are compared with each other: the rule is one."""
    problem = draw(_problems(mixing=mixing, singular="singular bubbles" not in KNOWN_FAILURES))
    place = draw(_meshes(problem, data=not mixing))
    if not mixing:
        place = draw(st.sampled_from((Place("scan"), place)))
    update_every = draw(st.sampled_from((1, 2, 3)))
    updates = draw(st.sampled_from((1, 2, 3)))
    updates += (problem.depth - 1) // update_every  # Two calls give all modules gradients.
    case = StreamCase(
        problem,
        place,
        draw(st.sampled_from(("stream", "origin"))),
        updates * update_every,
        update_every,
        draw(st.sampled_from(list(OPTIMIZERS))),
    )
    places = st.tuples(st.integers(0, 2 * case.num_frames - 1), st.integers(0, problem.batch - 1))
    resets = st.lists(places, max_size=5, unique=True).map(lambda one: tuple(sorted(one)))
    data = st.builds(Stream, seed=_SEEDS, resets=resets)
    return case, draw(st.lists(data, min_size=2, max_size=2).map(tuple))


_SEEDS = st.integers(0, 999)
_SEVERAL_SEEDS = st.tuples(_SEEDS, _SEEDS)


# Executions -------------------------------------------------------------------------------------


def _by_steps(network, loss_fn, params, state, frames, targets, *, target, train, rng):
    """An episode by `step.computation_step` alone, from a pipeline full of NaN."""
    first = jax.tree.map(lambda leaf: leaf[0], (frames, targets))
    in_flight = step.init_in_flight(network, params, state, *first, target_alignment=target)
    in_flight = random_networks.poisoned(in_flight)

    def body(carry, inputs):
        in_flight, state, sums = carry
        one = step.computation_step(
            network, loss_fn, params, state, in_flight, *inputs, train=train, rng=rng
        )
        sums = jax.tree.map(jnp.add, sums, one.grads)
        return (one.in_flight, one.state, sums), (one.output, one.valid, one.loss, one.trained)

    num_frames = len(jax.tree.leaves(frames)[0])
    no_grads = jax.tree.map(jnp.zeros_like, params)
    (_, state, sums), (outputs, valid, losses, trained) = jax.lax.scan(
        body, (in_flight, state, no_grads), (frames, targets, jnp.arange(num_frames))
    )
    gamma = trained.sum(0, dtype=jnp.int32)
    grads = [jax.tree.map(lambda g, n=n: g / n, one) for one, n in zip(sums, gamma, strict=True)]
    return step.Episode(tuple(grads), gamma, losses.sum() / valid.sum(), outputs, valid, state)


@functools.lru_cache(maxsize=PROGRAMS)
def _episode_program(case):
    problem, place = case.problem, case.place
    network = random_networks.network_of(problem.modules)
    loss_fn = random_networks.LOSSES[problem.loss]
    options = {"target": case.target, "train": case.train}
    bubble = jnp.nan
    if case.rule == "backprop" and "NaN among integers" in KNOWN_FAILURES:
        bubble = 1e9

    def run(params, state, frames, targets, rng):
        arguments = network, loss_fn, params, state, frames, targets
        if place.execution == "steps":
            return _by_steps(*arguments, rng=rng, **options)
        if place.on_mesh:
            return depth_sharded.episode(
                *arguments, rule=case.rule, schedule=place.schedule, mesh=place.mesh(),
                groups=place.groups, recompute=place.recompute, rng=rng, bubble=bubble, **options,
            )  # fmt: skip
        return step.episode_gradients(
            *arguments, rule=case.rule, execution=place.execution, rng=rng, **options
        )

    return jax.jit(run)


def _reference_episode(case):
    episode = {"sideways": reference.sideways_episode, "backprop": reference.backprop_episode}
    return reference.replicated(episode[case.rule], case.place.replicas)


class _Training(NamedTuple):
    """A jitted train step, and conversions of a state with a pytree for every module."""

    train_step: object
    from_modules: object
    to_modules: object
    empty: object  # a train state, as shapes


@functools.lru_cache(maxsize=PROGRAMS)
def _training_program(case):
    problem, place = case.problem, case.place
    network = random_networks.network_of(problem.modules)
    loss_fn = random_networks.LOSSES[problem.loss]
    tx = _transformation(case.optimizer)
    options = {"target": case.target, "metrics_fn": lambda y, t: {"again": loss_fn(y, t)}}
    if isinstance(case, StreamCase):
        options |= {"update_every": case.update_every, "with_outputs": True}
    else:
        options |= {"rule": case.rule}
    init, _ = step.make_train_step(network, loss_fn, tx, **options)
    frame = random_networks.frame_shape(problem)
    target = jax.eval_shape(lambda: random_networks.clip(problem, 1, 0)[1])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), target)
    empty = jax.eval_shape(init, jax.random.key(0), frame, target)
    if not place.on_mesh:
        options |= place.options()
        _, train_step = step.make_train_step(network, loss_fn, tx, **options)
        return _Training(jax.jit(train_step), lambda x: x, lambda x: x, empty)
    mesh = place.mesh()
    to_modules, from_modules = sharded_training.per_module(network, tx, mesh, frame, place.groups)
    if isinstance(case, StreamCase):
        _, train_step = sharded_online.make_train_step(
            network, loss_fn, tx, mesh=mesh, groups=place.groups, bubble=jnp.nan, **options
        )
    else:
        options |= place.options() | {"schedule": place.schedule, "recompute": place.recompute}
        _, train_step = step.make_train_step(network, loss_fn, tx, **options)
    return _Training(jax.jit(train_step), from_modules, to_modules, empty)


def _start(case, program, seed):
    """A train state with a pytree for every module, from NumPy, with NaN in flight."""
    params, state = random_networks.variables(case.problem, seed)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.empty._replace(rng=()))
    in_flight = start.in_flight
    if in_flight:
        network = random_networks.network_of(case.problem.modules)
        frames, targets = random_networks.clip(case.problem, 1, seed)
        first = jax.tree.map(lambda leaf: leaf[0], (frames, targets))
        in_flight = random_networks.poisoned(
            step.init_in_flight(
                network, params, state, *first, target_alignment=case.target, per_example=True
            )
        )
    opt_state = _transformation(case.optimizer).init(params)
    return start._replace(
        params=params, state=state, opt_state=opt_state, in_flight=in_flight, rng=_rng(seed)
    )


def _rng(seed):
    return jax.random.wrap_key_data(np.array([seed, 7], np.uint32))


# Comparing --------------------------------------------------------------------------------------


def _assert_close(actual, expected, what):
    """Structure, types and shapes have to be the same, numbers to `TOLERANCE`."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), what
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        name = what + jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(b).all(), f"{name}: nothing to compare with"
        atol = TOLERANCE * max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def _assert_episode(actual, expected):
    np.testing.assert_array_equal(actual.num_grads, expected.num_grads)
    np.testing.assert_array_equal(actual.valid, expected.valid)
    for name in ("outputs", "loss", "grads", "state"):
        _assert_close(getattr(actual, name), getattr(expected, name), name)


# Properties -------------------------------------------------------------------------------------


@_cases(in_ci=50)
@hypothesis.given(_episodes(), _SEVERAL_SEEDS)
def test_episodes(case, seeds):
    program, problem = _episode_program(case), case.problem
    for seed in seeds:
        start = random_networks.variables(problem, seed)
        clip = random_networks.clip(problem, case.num_frames, seed)
        rng = _rng(seed) if problem.rng else None
        expected = _reference_episode(case)(
            random_networks.network_of(problem.modules), random_networks.LOSSES[problem.loss],
            *start, *clip, target=case.target, train=case.train, rng=rng,
        )  # fmt: skip
        _assert_episode(program(*start, *clip, rng), expected)


@_cases(in_ci=20)
@hypothesis.given(_episodes(training=True), _SEVERAL_SEEDS)
def test_training(case, seeds):
    program, problem = _training_program(case), case.problem
    for seed in seeds:
        start = _start(case, program, seed)
        clips = [random_networks.clip(problem, case.num_frames, seed + n) for n in range(3)]
        expected = reference.train(
            _reference_episode(case),
            random_networks.network_of(problem.modules), random_networks.LOSSES[problem.loss],
            start.params, start.state, clips, optimizer=OPTIMIZERS[case.optimizer],
            rng=start.rng, target=case.target,
        )  # fmt: skip
        train_state, metrics = program.from_modules(start), []
        for clip in clips:
            train_state, found = program.train_step(train_state, *clip)
            metrics.append(found)
        actual = program.to_modules(train_state)
        for name, values in (
            ("loss", expected.losses), ("again", expected.losses),
            ("grad_norm", expected.grad_norms),
        ):  # fmt: skip
            _assert_close(np.array([one[name] for one in metrics]), values, name)
        _assert_close(actual.state, expected.state, "state")
        _assert_close(actual.params, expected.params, "params")


def _learn(case, data):
    """Two calls: `(train state, [(metrics, outputs)])`, NaN in the bubbles before each."""
    program = _training_program(case)
    frames, targets = random_networks.clip(case.problem, 2 * case.num_frames, data.seed)
    reset = _reset(case, data)
    train_state, results = _start(case, program, data.seed), []
    for k in (slice(0, case.num_frames), slice(case.num_frames, None)):
        clip = jax.tree.map(lambda x, k=k: x[k], (frames, targets))
        train_state, *found = program.train_step(program.from_modules(train_state), *clip, reset[k])
        train_state = program.to_modules(train_state)
        in_flight = random_networks.poisoned(jax.device_get(train_state.in_flight))
        train_state = train_state._replace(in_flight=in_flight)
        results.append(found)
    return train_state, results


def _reset(case, data):
    reset = np.zeros((2 * case.num_frames, case.problem.batch), bool)
    for place in data.resets:
        reset[place] = True
    return reset


@_cases(in_ci=30)
@hypothesis.given(_streams())
def test_streams(drawn):
    case, several = drawn
    problem, program = case.problem, _training_program(case)
    for data in several:
        start = _start(case, program, data.seed)
        clip = random_networks.clip(problem, 2 * case.num_frames, data.seed)
        expected = reference.sideways_stream(
            random_networks.network_of(problem.modules), random_networks.LOSSES[problem.loss],
            start.params, start.state, *clip, _reset(case, data), target=case.target,
            update_every=case.update_every, optimizer=OPTIMIZERS[case.optimizer],
            rng=start.rng, replicas=case.place.replicas,
        )  # fmt: skip
        train_state, results = _learn(case, data)
        updates = case.num_frames // case.update_every
        for call, (metrics, shown) in enumerate(results):
            k = slice(call * case.num_frames, (call + 1) * case.num_frames)
            np.testing.assert_array_equal(shown.frames, expected.shown[k])
            losses = expected.losses[k][expected.shown[k] >= 0]
            loss = np.mean(losses) if losses.size else np.zeros(())
            norm = expected.grad_norms[call * updates : (call + 1) * updates].mean()
            for name, value in (("loss", loss), ("again", loss), ("grad_norm", norm)):
                _assert_close(metrics[name], np.asarray(value), f"call {call}: {name}")
            if expected.outputs is None:
                assert not any(leaf.any() for leaf in jax.tree.leaves(shown.outputs))
            else:
                outputs = jax.tree.map(lambda x, k=k: x[k], expected.outputs)
                _assert_close(shown.outputs, outputs, f"call {call}: outputs")
        _assert_close(train_state.state, expected.state, "state")
        _assert_close(train_state.params, expected.params, "params")
