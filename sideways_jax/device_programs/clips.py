"""Episodes of clips with a program for every device, and training with an update after each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sideways_jax.device_programs.group_step import (
    Carry,
    Given,
    Shown,
    empty_pipeline,
    room_to_show,
    start_carry,
)
from sideways_jax.device_programs.optimizer import (
    Owned,
    Update,
    programs_of,
    run_update,
)
from sideways_jax.device_programs.places import places_of, put_modules
from sideways_jax.device_programs.plan import Plan, divided, initial_shapes, make_plan
from sideways_jax.device_programs.schedule import make_stages, run_table
from sideways_jax.device_programs.start import (
    check_dispatched,
    init_state,
    owned_by_places,
    put_together,
    sizes_of,
)
from sideways_jax.device_programs.steps import (
    Arrived,
    carry_sharding,
    give,
    make_steps,
    run_steps,
)
from sideways_jax.network.checks import check_tuples
from sideways_jax.pipeline.sums import counts
from sideways_jax.rule import schedules
from sideways_jax.rule.episode import Episode, check_episode, paired_targets
from sideways_jax.rule.schedules import Schedule
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, average, first_of, masked_mean, shape_of
from sideways_jax.training.train_state import Training


class Options(NamedTuple):
    """Where a task is computed, and how."""

    mesh: Mesh
    sizes: tuple[int, ...] | None  # how many modules each place takes
    schedule: Schedule
    donate: bool
    bubble: float


class Programs(NamedTuple):
    """The programs of an episode."""

    plan: Plan
    # run(params, state, frames, targets, rng) -> a `Carry` for every place
    run: Callable[..., list[Carry]]
    means: Sequence[Callable]  # [n](sums, num_grads), the gradients of the modules of place n
    summary: Callable  # the loss, and the metrics, out of what the top shows


def make_programs(
    task: Task, options: Options, shapes: tuple, *, keep_outputs: bool = True
) -> Programs:
    """Programs for arguments of these shapes: those of `Execution.episode`, from `params` on."""
    params, state, frames, targets, rng = opened(shapes)
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    frame, target = first_of((frames, targets))
    plan = make_plan(
        task, params, state, frame, target, options.mesh, options.sizes, rng,
        recompute=options.schedule.recompute, bubble=options.bubble,
    )  # fmt: skip
    where = plan.where
    if task.is_pipelined:
        steps = make_steps(plan, partial(start, plan, keep_outputs))
        table = schedules.sideways(num_frames, task.depth)
    else:
        stages = make_stages(plan, num_frames, keep_outputs=keep_outputs)
        table = schedules.make(options.schedule.name, num_frames, len(where.places))
    numbers = np.stack([table.forward, table.backward]) if task.is_pipelined else None

    def run(params, state, frames, targets, rng):
        params, state = (put_modules(where.places, where.groups, x) for x in (params, state))
        if not task.is_pipelined:
            given = give(plan, frames, targets, None, rng)
            return run_table(stages, table, params, state, given)
        given = give(plan, frames, paired_targets(task, targets), numbers, rng)
        started = [program(given[n], plan.own(n, state)) for n, program in enumerate(steps.start)]
        carries, *arrived = (list(x) for x in zip(*started, strict=True))
        owned = [Owned(plan.own(n, params), []) for n in range(len(where.places))]
        return run_steps(steps, owned, carries, Arrived(*arrived), given)[1]

    valid = np.asarray(counts(task, num_frames)[1])
    return Programs(
        plan,
        run,
        [jax.jit(partial(_means, plan, n)) for n in range(len(where.places))],
        jax.jit(partial(_summary, valid)),
    )


def start(
    plan: Plan, keep_outputs: bool, n: int, given: Given, state: tuple
) -> tuple[Carry, dict, tuple]:
    """What device n starts an episode from: an empty pipeline."""
    empty, shown = empty_pipeline(plan, n), room_to_show(plan, n, given, keep_outputs)
    carry = start_carry(plan, n, state, empty.within, empty.fifos, shown, 1)
    return carry, empty.below, empty.above


def _means(plan: Plan, n: int, sums: tuple, num_grads: jax.Array) -> tuple:
    return tuple(map(average, sums, num_grads, plan.own(n, plan.params)))


def _summary(valid: np.ndarray, shown: Shown, squares: list[jax.Array]) -> dict[str, jax.Array]:
    values = {"loss": shown.losses} | (shown.metrics or {})
    metrics = {name: masked_mean(one, jnp.asarray(valid)) for name, one in values.items()}
    if squares:
        metrics["grad_norm"] = jnp.sqrt(sum(squares[1:], squares[0])[0])
    return metrics


def closed(*arguments: PyTree) -> tuple:
    """The shapes of arguments in a form that can be a key of a cache."""
    leaves, structure = jax.tree.flatten(shape_of(arguments))
    return structure, tuple(leaves)


def opened(shapes: tuple) -> PyTree:
    """The inverse of `closed`."""
    structure: Any = shapes[0]
    return jax.tree.unflatten(structure, shapes[1])


_kept = functools.lru_cache(maxsize=16)(make_programs)


def episode(
    task: Task, options: Options, params: tuple, state: tuple, frames: PyTree, targets: PyTree,
    rng: jax.Array | None,
) -> Episode:  # fmt: skip
    """An episode; its arrays stay on their places. Arguments as for `Execution.episode`.

    Programs are kept for calls with the same task, of arguments with the same shapes. For a task
    that cannot be hashed, and for functions that are made anew, each call compiles its own.
    """
    check_dispatched(params, state, frames, targets, rng)
    task = task._replace(metrics_fn=None)
    asked = task, options, closed(params, state, frames, targets, rng)
    try:
        hash(asked)
    except TypeError:  # Something in the task has none.
        programs = make_programs(*asked)
    else:
        programs = _kept(*asked)
    carries = programs.run(params, state, frames, targets, rng)
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    num_grads, valid = counts(task, num_frames)
    gamma = np.asarray(num_grads)
    grads: list = []
    for n, (means, carry) in enumerate(zip(programs.means, carries, strict=True)):
        grads += means(carry.sums, programs.plan.own(n, tuple(gamma)))
    shown = carries[-1].shown
    return Episode(
        grads=tuple(grads),
        num_grads=num_grads,
        loss=programs.summary(shown, [])["loss"],
        outputs=shown.outputs,
        valid=valid,
        state=tuple(one for carry in carries for one in carry.state),
    )


def make_training(task: Task, tx: optax.GradientTransformation, options: Options) -> Training:
    """`init` and `train_step` for an update after each episode."""
    network, places = task.network, places_of(options.mesh)

    def init(key, frame, target=None):
        del target  # The pipeline starts empty in every episode.
        params, state = initial_shapes(network, frame)
        plan = make_plan(
            task, params, state, frame, None, options.mesh, options.sizes, shape_of(key)
        )
        return init_state(plan, divided(plan, tx), key)

    @functools.cache
    def programs_for(sizes, shapes):
        programs = make_programs(task, options._replace(sizes=sizes), shapes, keep_outputs=False)
        plan = programs.plan
        num_frames = jax.tree.leaves(opened(shapes)[2])[0].shape[0]
        update = Update(plan, divided(plan, tx), num_frames, scale=1, hold=False)
        return programs, update, programs_of(update, carry_sharding)

    def train_step(train_state, frames, targets):
        check_dispatched(train_state, frames, targets)
        check_tuples(task.depth, train_state.params, train_state.state)
        num_frames = check_episode(task, frames, targets)
        step, rng, number_of_frames = jax.device_put(
            (train_state.step, train_state.rng, train_state.frames), places[-1].whole
        )
        key = jax.random.fold_in(rng, step)
        arguments = train_state.params, train_state.state, frames, targets, key
        sizes = options.sizes or sizes_of(places, train_state)
        programs, update, updates = programs_for(sizes, closed(*arguments))
        plan = programs.plan
        owned = owned_by_places(plan, update.optimizer, train_state, donate=options.donate)
        params = tuple(one for each in owned for one in each.params)
        carries = programs.run(params, *arguments[1:])
        owned, carries = run_update(update, updates, owned, carries)
        squares = jax.device_put([carry.squares for carry in carries], places[-1].whole)
        train_state = put_together(
            train_state._replace(step=step, frames=number_of_frames), update.optimizer, owned,
            carries, (), updates=1, num_frames=num_frames,
        )  # fmt: skip
        return train_state, programs.summary(carries[-1].shown, squares)

    return Training(init, train_step)
