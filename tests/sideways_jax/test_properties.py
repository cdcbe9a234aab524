"""Random networks, clips, resets, meshes, schedules and optimizers against the literal reference.

A case is what hypothesis draws: a network and its setting, which is compiled once, and a few clips
(and resets) on which every number that comes out has to be that of `reference.py`, in float64 to
1e-10. Every bubble is NaN: in the pipeline as it starts, between two calls, and on a mesh in
everything that has not arrived and in the padding.

In CI the cases are always the same 200: 100 networks with their settings, two clips each.
`PROPERTY_CASES=5000 pytest -q tests/sideways_jax/test_properties.py` draws others, and makes what
fails as small as it can; what was found that way stays as an `@example`.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from sideways_jax import make_mesh, step
from sideways_jax.rule.task import Task
from tests.sideways_jax import random_networks, reference
from tests.sideways_jax.random_networks import Problem

TOLERANCE = 1e-10  # relative to the largest entry of a leaf, or to 1e-3 if that is smaller
PROGRAMS = 24  # how many stay compiled

# What the library is known to get wrong; such cases are not drawn. Empty is the goal.
#   "singular bubbles": an example that is a bubble runs through modules as zeros, so that a module
#     which is singular at zero makes the gradient of the batch NaN.
#   "NaN among integers": `depth_sharded.episode(bubble=NaN)` with backprop casts NaN to the type of
#     integers that a stage keeps, which NumPy warns of.
KNOWN_FAILURES: frozenset[str] = frozenset()

IN_CI = 200
BY_HAND = int(os.environ.get("PROPERTY_CASES", "0"))


def _cases(in_ci):
    """As many cases as are drawn in CI, or by hand the same share of what the environment says.

    Two of them, with two clips, are one example for hypothesis.
    """
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    return hypothesis.settings(
        max_examples=-(-in_ci * (BY_HAND or IN_CI) // (2 * IN_CI)),
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
    """Where a case runs: one of the executions, "steps" (`_by_steps`), or "blocking" backprop."""

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
        return {
            "execution": "depth_sharded",
            "mesh": self.mesh(),
            "schedule": self.schedule,
            "groups": self.groups,
            "recompute": self.recompute if self.schedule else None,
        }


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


def _drawn(function):
    """The strategy of what `function(choices)` gives."""
    return st.binary(min_size=80, max_size=80).map(lambda octets: function(_Choices(octets)))


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
    modules = []
    for i in range(depth):
        words = [{"bytes": "floats", "pair": "both"}.get(frame)] if i == 0 else []
        words.append("join" if i == join else None)
        if i < depth - 1:
            words.append(choose.of(*bodies))
        else:
            words.append(choose.of(None, None, *singular))
            words.append(f"linear {random_networks.NUM_OUTPUTS}")
        words.append(choose.of(*extras))
        words.append("fork" if i == fork else None)
        modules.append(", ".join(word for word in words if word))
    problem = Problem(tuple(modules), frame, choose.of("squares", "labels", "parts"))
    if problem.uses(random_networks.SINGULAR):  # Dropout gives zeros, for which they have no value.
        modules = [words.replace("dropout", "keys") for words in modules]
    return problem._replace(modules=tuple(modules))


def _mesh(choose, problem, *, data=True):
    data = choose.of(1, 2) if data else 1
    depth = choose.up_to(min(problem.depth, jax.device_count() // data), 1)
    groups = None
    if choose.of(False, True):
        left, groups = problem.depth, []
        for others in range(depth - 1, -1, -1):
            groups.append(choose.up_to(left - others, 1) if others else left)
            left -= groups[-1]
        groups = tuple(groups)
    return Place("depth_sharded", depth, data, groups)


def _with_batches(choose, problem, place):
    """The problem with a batch of 1 to 3 examples for every replica.

    Where gradients go through narrow types, their sums have to be divided by powers of 2.
    """
    three = place.replicas == 1 and not problem.uses(("fork",))
    rows = choose.of(*((2, 2, 3) if three else (2, 2, 1)))
    return problem._replace(batch=rows * place.replicas)


def _episode_case(choose, *, training=False):
    rule, execution = choose.of(
        ("sideways", "scan"),
        ("sideways", "time_parallel"),
        ("sideways", "depth_sharded"),
        ("backprop", "depth_sharded"),
        ("backprop", "depth_sharded"),
        ("backprop", "scan"),
        ("backprop", "time_parallel"),
        *([] if training else [("sideways", "steps")]),
    )
    problem = _problem(choose, feedback=execution != "time_parallel")
    place = Place(execution)
    if place.on_mesh:
        place = _mesh(choose, problem)
    if place.on_mesh and rule == "backprop":
        place = place._replace(
            schedule=choose.of("blocking", "gpipe", "1f1b"), recompute=choose.of(True, False)
        )
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
    places = "scan", "depth_sharded", "scan", "depth_sharded", "blocking"
    execution = "depth_sharded" if mixing else choose.of(*places)
    in_step = execution == "blocking"  # No example is a bubble while others are not.
    problem = _problem(
        choose, mixing=in_step, singular=in_step or "singular bubbles" not in KNOWN_FAILURES
    )
    if mixing:
        modules = list(problem.modules)
        modules[choose.up_to(problem.depth - 1)] += f", {random_networks.MIXING[0]}"
        problem = problem._replace(modules=tuple(modules))
    place = Place(execution)
    if place.on_mesh:
        place = _mesh(choose, problem, data=not mixing)
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
    )


def _stream_case_and_data(choose, **options):
    case = _stream_case(choose, **options)
    return case, (_stream(choose, case), _stream(choose, case))


def _stream(choose, case):
    """At some steps all examples start anew, so that modules go untrained."""
    last, batch = 2 * case.num_frames - 1, case.problem.batch
    resets = set()
    for _ in range(choose.up_to(4)):
        t, b = choose.up_to(last), choose.up_to(batch)
        resets |= {(t, n) for n in range(batch) if b in (n, batch)}
    return Stream(_seed(choose), tuple(sorted(resets)))


def _seed(choose):
    return choose.up_to(255)


# Programs -------------------------------------------------------------------------------------


@functools.cache
def _compiler_options():
    """Without its newer emitters XLA compiles these programs in a third of the time.

    None where it does not know the option.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError:
        return None
    return options


def _jit(function):
    return jax.jit(function, compiler_options=_compiler_options())


def _by_steps(network, loss_fn, params, state, frames, targets, *, target, train, rng):
    """An episode by `step.computation_step` alone, from a pipeline full of NaN."""
    first = jax.tree.map(lambda leaf: leaf[0], (frames, targets))
    in_flight = step.init_in_flight(network, params, state, *first, target_alignment=target)
    in_flight = random_networks.full_of_nan(in_flight)

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
            recompute = place.recompute if place.schedule else None
            pipeline = step.Pipeline(place.mesh(), place.groups, place.schedule, recompute)
            task = Task(network, loss_fn, case.rule, case.target, case.train)
            return pipeline.episode(task, params, state, frames, targets, rng, bubble=bubble)
        return step.episode_gradients(
            *arguments, rule=case.rule, execution=place.execution, rng=rng, **options
        )

    return _jit(run)


def _reference_episode(case):
    episode = {"sideways": reference.sideways_episode, "backprop": reference.backprop_episode}
    return reference.replicated(episode[case.rule], case.place.replicas)


class _Training(NamedTuple):
    """A jitted train step, on states in host memory with a pytree for every module."""

    train_step: Callable
    from_modules: Callable
    to_modules: Callable
    empty: step.TrainState  # as shapes

    def __call__(self, train_state, *arguments):
        """`(train_state, ...)`, as the train step gives it."""
        rng = train_state.rng  # Typed keys do not go to host memory.
        train_state = self.from_modules(train_state._replace(rng=()))._replace(rng=rng)
        train_state, *found = self.train_step(train_state, *arguments)
        train_state = jax.device_get(self.to_modules(train_state._replace(rng=())))
        return train_state._replace(rng=rng), *found


def _unchanged(train_state):
    return train_state


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
    if place.execution == "blocking":
        options |= {"rule": "backprop", "update_every": 1}
        init, train_step = step.make_train_step(network, loss_fn, tx, **options)
    else:
        init, train_step = step.make_train_step(network, loss_fn, tx, **options)
    frame, target = random_networks.batch_shapes(problem)
    empty = jax.eval_shape(init, jax.random.key(0), frame, target)
    if place.execution in ("scan", "blocking"):
        return _Training(_jit(train_step), _unchanged, _unchanged, empty)
    if place.on_mesh and isinstance(case, StreamCase):
        _, train_step = step.Pipeline(place.mesh(), place.groups).stream_training(
            Task(network, loss_fn, target=case.target, metrics_fn=options["metrics_fn"]), tx,
            update_every=case.update_every, with_outputs=True, bubble=jnp.nan,
        )  # fmt: skip
    else:
        _, train_step = step.make_train_step(network, loss_fn, tx, **options, **place.options())
    if not place.on_mesh:
        return _Training(_jit(train_step), _unchanged, _unchanged, empty)
    to_modules, from_modules = step.per_module(network, tx, place.mesh(), frame, place.groups)
    return _Training(_jit(train_step), from_modules, to_modules, empty)


def _start(case, seed):
    """A train state with a pytree for every module, from NumPy, with NaN in flight.

    The state of every optimizer here starts from zeros.
    """
    empty = _training_program(case).empty._replace(rng=())
    start = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
    params, state = random_networks.variables(case.problem, seed)
    in_flight = empty.in_flight and random_networks.empty(empty.in_flight)
    return start._replace(params=params, state=state, in_flight=in_flight, rng=_rng(seed))


def _rng(seed):
    return jax.random.wrap_key_data(np.array([seed, 7], np.uint32))


# Comparing --------------------------------------------------------------------------------------


def _assert_close(actual, expected, what, *, bubbles=False):
    """Structure, types and shapes have to be the same, numbers to `TOLERANCE`.

    All have to be numbers; or, with `bubbles`, NaN in the same places.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected), what
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        name = what + jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        a, b = a.astype(np.float64), b.astype(np.float64)
        if bubbles:
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
            a, b = np.nan_to_num(a), np.nan_to_num(b)
        assert np.isfinite(b).all(), f"{name}: nothing to compare with"
        atol = TOLERANCE * max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def _assert_episode(actual, expected):
    np.testing.assert_array_equal(actual.num_grads, expected.num_grads)
    np.testing.assert_array_equal(actual.valid, expected.valid)
    for name in ("outputs", "loss", "grads", "state"):
        _assert_close(getattr(actual, name), getattr(expected, name), name)


# Properties -------------------------------------------------------------------------------------


@_cases(in_ci=88)
@hypothesis.given(_drawn(lambda choose: (_episode_case(choose), (_seed(choose), _seed(choose)))))
def test_episodes(drawn):
    case, seeds = drawn
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


@_cases(in_ci=36)
@hypothesis.given(
    _drawn(lambda choose: (_episode_case(choose, training=True), (_seed(choose), _seed(choose))))
)
def test_training(drawn):
    case, seeds = drawn
    program, problem = _training_program(case), case.problem
    for seed in seeds:
        start = _start(case, seed)
        clips = [random_networks.clip(problem, case.num_frames, seed + n) for n in range(3)]
        expected = reference.train(
            _reference_episode(case),
            random_networks.network_of(problem.modules), random_networks.LOSSES[problem.loss],
            start.params, start.state, clips, optimizer=OPTIMIZERS[case.optimizer],
            rng=start.rng, target=case.target,
        )  # fmt: skip
        actual, metrics = start, []
        for clip in clips:
            actual, found = program(actual, *clip)
            metrics.append(found)
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
    train_state, results = _start(case, data.seed), []
    for k in (slice(0, case.num_frames), slice(case.num_frames, None)):
        clip = jax.tree.map(lambda x, k=k: x[k], (frames, targets))
        train_state, *found = program(train_state, *clip, reset[k])
        in_flight = random_networks.poisoned(jax.device_get(train_state.in_flight))
        train_state = train_state._replace(in_flight=in_flight)
        results.append(found)
    return train_state, results


def _reset(case, data):
    reset = np.zeros((2 * case.num_frames, case.problem.batch), bool)
    for place in data.resets:
        reset[place] = True
    return reset


def _reference_stream(case):
    if case.place.execution == "blocking":
        return reference.blocking_stream
    return functools.partial(
        reference.sideways_stream, target=case.target, update_every=case.update_every,
        replicas=case.place.replicas,
    )  # fmt: skip


def _mean_of_numbers(values):
    """The mean of what is not NaN, zero if there is nothing."""
    values = values[~np.isnan(values)]
    return np.asarray(values.mean() if values.size else 0.0)


@_cases(in_ci=64)
@hypothesis.given(_drawn(_stream_case_and_data))
def test_streams(drawn):
    case, several = drawn
    problem = case.problem
    for data in several:
        start = _start(case, data.seed)
        clip = random_networks.clip(problem, 2 * case.num_frames, data.seed)
        expected = _reference_stream(case)(
            random_networks.network_of(problem.modules), random_networks.LOSSES[problem.loss],
            start.params, start.state, *clip, _reset(case, data),
            optimizer=OPTIMIZERS[case.optimizer], rng=start.rng,
        )  # fmt: skip
        train_state, results = _learn(case, data)
        for call, (metrics, shown) in enumerate(results):
            k = slice(call * case.num_frames, (call + 1) * case.num_frames)
            np.testing.assert_array_equal(shown.frames, expected.shown[k])
            loss, norm = (_mean_of_numbers(x[k]) for x in (expected.losses, expected.grad_norms))
            for name, value in (("loss", loss), ("again", loss), ("grad_norm", norm)):
                _assert_close(metrics[name], value, f"call {call}: {name}")
            if expected.outputs is None:
                assert not any(leaf.any() for leaf in jax.tree.leaves(shown.outputs))
            else:
                outputs = jax.tree.map(lambda x, k=k: x[k], expected.outputs)
                _assert_close(shown.outputs, outputs, f"call {call}: outputs")
        _assert_close(train_state.state, expected.state, "state")
        _assert_close(train_state.params, expected.params, "params")


@_cases(in_ci=12)
@hypothesis.given(_drawn(functools.partial(_stream_case_and_data, mixing=True)))
def test_streams_of_modules_that_mix_examples(drawn):
    """What they see for a bubble is up to the library: the same in every execution."""
    case, several = drawn
    for data in several:
        expected, actual = (_learn(one, data) for one in (case._replace(place=Place("scan")), case))
        for name in ("in_flight", "state", "params", "opt_state"):
            pair = (getattr(train_state, name) for train_state, _ in (actual, expected))
            _assert_close(*pair, name, bubbles=True)
        _assert_close(actual[1], expected[1], "metrics and outputs")
