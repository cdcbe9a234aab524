"""Cases for the property tests: what is compared with the reference, where it runs, and how.

A case is compiled once and can then be checked on any data. Every bubble is NaN: in the pipeline as
it starts, between two calls, and on a mesh in everything that has not arrived and in the padding.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sideways_jax import make_mesh, step
from sideways_jax.rule.task import Task
from tests.sideways_jax import random_networks, reference
from tests.sideways_jax.random_networks import Problem
from tests.sideways_jax.reference import Optimizer

TOLERANCE = 1e-10  # relative to the largest entry of a leaf, or to 1e-3 if that is smaller
PROGRAMS = 24  # how many stay compiled
CALLS = 2  # of a train step on a stream

# What the library is known to get wrong: not drawn, and expected to fail where it is one of `FOUND`
# in `test_properties.py`. Empty is the goal.
#   "singular bubbles": an example that is a bubble runs through modules as zeros, so that a module
#     which is singular at zero makes the gradient of the batch NaN.
KNOWN_FAILURES: frozenset[str] = frozenset()

# Cases ------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a case runs: one of the executions, "steps" (`_by_steps`), or "blocking" backprop."""

    execution: str
    depth: int = 1
    data: int = 1
    groups: tuple[int, ...] | None = None
    schedule: str | None = None
    recompute: bool = True
    stash_weights: bool = False

    @property
    def on_mesh(self):
        return self.execution in ("depth_sharded", "program_per_device")

    @property
    def replicas(self):
        """Those whose statistics are of their own share; `program_per_device` has none."""
        return self.data if self.execution == "depth_sharded" else 1

    def mesh(self):
        return make_mesh(self.depth, self.data)

    def options(self):
        """Those of `episode_gradients` and `make_train_step`."""
        if not self.on_mesh:
            return {"execution": self.execution}
        return {
            "execution": self.execution,
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
    """Online learning, in `CALLS` calls of `num_frames` frames each."""

    problem: Problem
    place: Place
    target: str
    num_frames: int
    update_every: int
    optimizer: str
    rule: str = "sideways"


class Data(NamedTuple):
    """What frames and variables are drawn from, and where streams have their first frames."""

    seed: int
    resets: tuple[tuple[int, int], ...] = ()  # (step, example)


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
    network = random_networks.network_of(problem)
    loss_fn = random_networks.LOSSES[problem.loss]
    options = {"target": case.target, "train": case.train}

    def run(params, state, frames, targets, rng):
        arguments = network, loss_fn, params, state, frames, targets
        if place.execution == "steps":
            return _by_steps(*arguments, rng=rng, **options)
        if place.on_mesh:
            recompute = place.recompute if case.rule != "sideways" else None
            kind = step.EXECUTIONS[place.execution]
            pipeline = kind(place.mesh(), place.groups, place.schedule, recompute)
            task = Task(network, loss_fn, case.rule, case.target, case.train)
            return pipeline.episode(task, params, state, frames, targets, rng, bubble=jnp.nan)
        execution = place.execution
        if case.rule == "pipelined_backprop" and execution == "scan":
            execution = step.Scan(place.recompute)
        return step.episode_gradients(
            *arguments, rule=case.rule, execution=execution, rng=rng, **options
        )

    return run if place.execution == "program_per_device" else _jit(run)


def _reference_episode(case):
    episode = {
        "sideways": reference.sideways_episode,
        "pipelined_backprop": reference.pipelined_episode,
        "backprop": reference.backprop_episode,
    }
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
    network = random_networks.network_of(problem)
    loss_fn = random_networks.LOSSES[problem.loss]
    tx = _transformation(case.optimizer)
    options = {"target": case.target, "metrics_fn": lambda y, t: {"again": loss_fn(y, t)}}
    if isinstance(case, StreamCase):
        options |= {"update_every": case.update_every, "with_outputs": True}
    options |= {"rule": case.rule}
    if place.execution == "blocking":
        options |= {"rule": "backprop", "update_every": 1}
        init, train_step = step.make_train_step(network, loss_fn, tx, **options)
    elif place.stash_weights:
        execution = step.Scan(place.recompute, stash_weights=True)
        init, train_step = step.make_train_step(
            network, loss_fn, tx, execution=execution, **options
        )
    else:
        init, train_step = step.make_train_step(network, loss_fn, tx, **options)
    frame, target = random_networks.batch_shapes(problem)
    empty = jax.eval_shape(init, jax.random.key(0), frame, target)
    if place.execution in ("scan", "blocking"):
        return _Training(_jit(train_step), _unchanged, _unchanged, empty)
    if place.execution == "program_per_device":
        recompute = (
            None if isinstance(case, StreamCase) or case.rule == "sideways" else place.recompute
        )
        execution = step.ProgramPerDevice(place.mesh(), place.groups, place.schedule, recompute)
        task = Task(network, loss_fn, case.rule, case.target, metrics_fn=options["metrics_fn"])
        if isinstance(case, StreamCase):
            _, train_step = execution.stream_training(
                task, tx, update_every=case.update_every, with_outputs=True, bubble=jnp.nan
            )
        else:
            _, train_step = execution.training(task, tx, bubble=jnp.nan)
        return _Training(train_step, _unchanged, _unchanged, empty)
    if place.on_mesh and isinstance(case, StreamCase):
        _, train_step = step.Pipeline(place.mesh(), place.groups).stream_training(
            Task(network, loss_fn, case.rule, case.target, metrics_fn=options["metrics_fn"]), tx,
            update_every=case.update_every, with_outputs=True, bubble=jnp.nan,
        )  # fmt: skip
    else:
        _, train_step = step.make_train_step(network, loss_fn, tx, **options, **place.options())
    if not place.on_mesh:
        return _Training(_jit(train_step), _unchanged, _unchanged, empty)
    to_modules, from_modules = step.per_module(network, tx, place.mesh(), frame, place.groups)
    return _Training(_jit(train_step), from_modules, to_modules, empty)


def forget_programs():
    """Gives back the memory that compiled programs take."""
    _episode_program.cache_clear()
    _training_program.cache_clear()
    jax.clear_caches()


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


# Checks -----------------------------------------------------------------------------------------


def check(case, data):
    """Fails unless a case on its data gives what the reference gives."""
    if isinstance(case, EpisodeCase):
        return _check_training(case, data) if case.optimizer else _check_episode(case, data)
    # What a module that mixes examples sees for a bubble is up to the library.
    mixing = case.problem.uses(random_networks.MIXING) and case.place.execution != "blocking"
    return _check_the_same_as_scan(case, data) if mixing else _check_stream(case, data)


def _check_episode(case, data):
    problem = case.problem
    start = random_networks.variables(problem, data.seed)
    clip = random_networks.clip(problem, case.num_frames, data.seed)
    rng = _rng(data.seed) if problem.rng else None
    expected = _reference_episode(case)(
        random_networks.network_of(problem), random_networks.LOSSES[problem.loss],
        *start, *clip, target=case.target, train=case.train, rng=rng,
    )  # fmt: skip
    with warnings.catch_warnings():  # Integers that a stage keeps are poisoned, too.
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        actual = _episode_program(case)(*start, *clip, rng)
    np.testing.assert_array_equal(actual.num_grads, expected.num_grads)
    np.testing.assert_array_equal(actual.valid, expected.valid)
    for name in ("outputs", "loss", "grads", "state"):
        _assert_close(getattr(actual, name), getattr(expected, name), name)


def _check_training(case, data):
    problem, start = case.problem, _start(case, data.seed)
    clips = [random_networks.clip(problem, case.num_frames, data.seed + n) for n in range(3)]
    expected = reference.train(
        _reference_episode(case),
        random_networks.network_of(problem), random_networks.LOSSES[problem.loss],
        start.params, start.state, clips, optimizer=OPTIMIZERS[case.optimizer],
        rng=start.rng, target=case.target,
    )  # fmt: skip
    actual, metrics = start, []
    for clip in clips:
        actual, found = _training_program(case)(actual, *clip)
        metrics.append(found)
    for name, values in (
        ("loss", expected.losses), ("again", expected.losses), ("grad_norm", expected.grad_norms)
    ):  # fmt: skip
        _assert_close(np.array([one[name] for one in metrics]), values, name)
    _assert_close(actual.state, expected.state, "state")
    _assert_close(actual.params, expected.params, "params")


def _check_stream(case, data):
    problem, start = case.problem, _start(case, data.seed)
    expected = _reference_stream(case)(
        random_networks.network_of(problem), random_networks.LOSSES[problem.loss],
        start.params, start.state, *_frames_and_targets(case, data), _reset(case, data),
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


def _check_the_same_as_scan(case, data):
    actual, found = _learn(case, data)
    expected, wanted = _learn(case._replace(place=Place("scan")), data)
    for name in ("in_flight", "state", "params", "opt_state"):
        _assert_close(getattr(actual, name), getattr(expected, name), name, bubbles=True)
    _assert_close(found, wanted, "metrics and outputs")


def _learn(case, data):
    """All calls: `(train state, [(metrics, outputs)])`, NaN in the bubbles before each."""
    program = _training_program(case)
    frames_and_targets = _frames_and_targets(case, data)
    reset = _reset(case, data)
    train_state, results = _start(case, data.seed), []
    for call in range(CALLS):
        k = slice(call * case.num_frames, (call + 1) * case.num_frames)
        clip = jax.tree.map(lambda x, k=k: x[k], frames_and_targets)
        train_state, *found = program(train_state, *clip, reset[k])
        in_flight = random_networks.poisoned(jax.device_get(train_state.in_flight))
        train_state = train_state._replace(in_flight=in_flight)
        results.append(found)
    return train_state, results


def _frames_and_targets(case, data):
    return random_networks.clip(case.problem, CALLS * case.num_frames, data.seed)


def _reset(case, data):
    reset = np.zeros((CALLS * case.num_frames, case.problem.batch), bool)
    for place in data.resets:
        reset[place] = True
    return reset


def _reference_stream(case):
    if case.place.execution == "blocking":
        return reference.blocking_stream
    return functools.partial(
        reference.sideways_stream, target=case.target, update_every=case.update_every,
        replicas=case.place.replicas, keeps_inputs=case.rule == "pipelined_backprop",
        stashes_weights=case.place.stash_weights,
    )  # fmt: skip


def _mean_of_numbers(values):
    """The mean of what is not NaN, zero if there is nothing."""
    values = values[~np.isnan(values)]
    return np.asarray(values.mean() if values.size else 0.0)
