"""Computation steps on all devices: at each, a program of every device is dispatched.

Python runs ahead of the devices. A program starts when what it waits for has arrived, so that all
devices work at the same time. What the next step needs is sent as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import Sharding
from jax.typing import ArrayLike

from sideways_jax.device_programs.group_step import (
    Carry,
    Given,
    Shown,
    own_fifos,
    step_of_device,
)
from sideways_jax.device_programs.links import deliver_down, deliver_up, hears_frame
from sideways_jax.device_programs.optimizer import (
    Owned,
    Programs,
    Update,
    programs_of,
    run_update,
    update_device,
)
from sideways_jax.device_programs.plan import Plan
from sideways_jax.rule.fifo import Buffer
from sideways_jax.tools.trees import PyTree


class Arrived(NamedTuple):
    """What every device has received; see `links.deliver_up` and `deliver_down`."""

    below: list
    above: list


class Steps(NamedTuple):
    """The programs of a run; each is compiled when it is called first."""

    plan: Plan
    start: Sequence[Callable]  # [n](given) for an empty pipeline, or [n](given, in flight)
    step: Sequence[Callable]  # [n]
    step_and_update: Sequence[Callable]  # [n]; none where devices tell each other numbers
    update: Update | None
    programs: Programs | None  # of the update, where they do


def make_steps(plan: Plan, start: Callable, update: Update | None = None) -> Steps:
    """The programs of the steps, with an update of the weights after every `update.every`.

    Args:
      plan: of the run.
      start: `start(n, given, ...) -> (Carry, below, above)`, what device n starts from.
      update: None for none.
    """
    starts, plain, fused = [], [], []
    for n, place in enumerate(plan.where.places):
        signals = carry_sharding(plan, n), place.batch, place.batch
        starts.append(jax.jit(partial(start, n), out_shardings=signals))
        step = partial(step_of_device, plan, n)
        plain.append(jax.jit(step, donate_argnums=1, out_shardings=signals))
        if update is not None and not update.is_told:
            both = partial(_step_and_update, plan, update, n)
            fused.append(
                jax.jit(both, donate_argnums=(0, 1), out_shardings=(place.whole, *signals))
            )
    programs = None if update is None or fused else programs_of(update, carry_sharding)
    return Steps(plan, starts, plain, fused, update, programs)


def _step_and_update(
    plan: Plan, update: Update, n: int, owned: Owned, carry: Carry, *signals: PyTree
) -> tuple:
    carry, up, down = step_of_device(plan, n, owned.params, carry, *signals)
    owned, carry = update_device(update, n, owned, carry, [])
    return owned, carry, up, down


def carry_sharding(plan: Plan, n: int) -> Carry:
    """How what device n keeps lies on the devices that share its batches."""
    place, batch = plan.where.places[n], jax.tree.leaves(plan.frame)[0].shape[0]

    def of_batches(sharding: Sharding, axis: int) -> Callable:
        """States, and what else is kept, may have no axis of examples.

        A wrong guess costs a transfer: how an array lies does not change its values.
        """
        return lambda x: sharding if x.shape[axis : axis + 1] == (batch,) else place.whole

    def of_buffer(x: Buffer | jax.ShapeDtypeStruct) -> Any:
        if not isinstance(x, Buffer):
            return place.whole
        entries = jax.tree.map(of_batches(place.steps, 1), x.entries)
        return Buffer(entries, jax.tree.map(of_batches(place.batch, 0), x.oldest))

    fifos = jax.eval_shape(partial(own_fifos, plan, n))
    lies: dict[str, Any] = dict.fromkeys(Carry._fields, place.whole) | {
        "within": place.batch,
        "fifos": jax.tree.map(of_buffer, fifos, is_leaf=lambda x: isinstance(x, Buffer)),
        "shown": Shown(*cast(tuple, (place.steps, place.whole, place.whole))),
    }
    return Carry(**lies)


def give(
    plan: Plan, frames: PyTree, targets: PyTree, numbers: ArrayLike | None, rng: jax.Array | None,
) -> list[Given]:  # fmt: skip
    """Frames, targets by computation step, numbers and the key, where they are needed.

    Args:
      plan: of the run.
      frames, targets: `[K, B, ...]`.
      numbers: int32 `[2, K, D]` or `[2, K, D, B]`.
      rng: the key of the run, or None.
    """
    given = []
    for n, (place, group) in enumerate(zip(plan.where.places, plan.where.groups, strict=True)):
        needs_frames = hears_frame(plan.task.network.wiring, group)
        clip = (frames if needs_frames else (), targets if n == plan.top else ())
        given.append(
            Given(
                *jax.device_put(clip, place.steps),
                *jax.device_put((numbers, rng), place.whole),
            )
        )
    return given


def run_steps(
    steps: Steps, owned: list[Owned], carries: list[Carry], arrived: Arrived, given: list[Given]
) -> tuple[list[Owned], list[Carry], Arrived, list]:
    """All steps of a call.

    Args:
      steps: the programs.
      owned, carries, given: of every place; taken apart.
      arrived: what was sent before the first step.

    Returns:
      `owned` and `carries` after the last step, what has arrived for the next, and the outputs that
      were sent up last, by place and module.
    """
    places, links = steps.plan.where.places, steps.plan.where.links
    owned, carries = list(owned), list(carries)
    ups: list[dict] = []
    for step in range(given[0].numbers.shape[1]):
        is_last = steps.update is not None and (step + 1) % steps.update.every == 0
        ups, downs = [], []
        for n in range(len(places)):
            signals = arrived.below[n], arrived.above[n], given[n]
            if is_last and steps.step_and_update:
                owned[n], carries[n], up, down = steps.step_and_update[n](
                    owned[n], carries[n], *signals
                )
            else:
                carries[n], up, down = steps.step[n](owned[n].params, carries[n], *signals)
            ups.append(up)
            downs.append(down)
        arrived = Arrived(deliver_up(links, places, ups), deliver_down(links, places, downs))
        if is_last and steps.update is not None and steps.programs is not None:
            owned, carries = run_update(steps.update, steps.programs, owned, carries)
    return owned, carries, arrived, ups
