"""The optimizer, on every device for its own modules, leaf by leaf.

Where an optimizer needs single numbers of other modules (the global norm for clipping, say), the
devices tell each other in rounds; see `training/division.py`. Where it does not, the update is a
part of the program of the last step before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from sideways_jax.device_programs.group_step import Carry, squares_of
from sideways_jax.device_programs.places import Places, put
from sideways_jax.device_programs.plan import Plan
from sideways_jax.tools.trees import PyTree, average, same_structure, select, zeros
from sideways_jax.training.division import Divided, Rounds, computed
from sideways_jax.training.module_flow import Flow


class Owned(NamedTuple):
    """What a device has of the weights and of the optimizer."""

    params: tuple  # of its modules
    opt_state: list[jax.Array]  # `Divided.held`


class Update(NamedTuple):
    """An update of the weights with the means of summed gradients."""

    plan: Plan
    optimizer: Divided
    every: int  # steps
    # What sums are multiplied by: a gradient is the mean over the batch, and counts as many
    # examples as `Carry.num_grads` says.
    scale: int
    hold: bool  # whether a module without a gradient, which there may be, stays as it is

    @property
    def is_told(self) -> bool:
        """Whether devices need numbers of each other."""
        return bool(self.optimizer.update_rounds)


def split_state(optimizer: Divided, places: Places, opt_state: PyTree) -> list[list[jax.Array]]:
    """The leaves of the optimizer's state that every place holds, put there.

    Raises:
      ValueError: for the state of another optimizer, whose leaves would be taken for those of this.
    """
    leaves = jax.tree.leaves(opt_state)
    if not same_structure(opt_state, optimizer.owners.state):
        had, wanted = (
            [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
            for tree in (opt_state, optimizer.owners.state)
        )
        pairs = itertools.zip_longest(had, wanted, fillvalue="nothing")
        one, other = next(
            (pair for pair in pairs if pair[0] != pair[1]), ("other types", "those of this one")
        )
        raise ValueError(
            f"this train state was made for another optimizer: opt_state has {one} where {other} "
            "is needed; make it with `init` of the same make_train_step"
        )
    return [
        put([leaves[k] for k in optimizer.held(n)], place.whole) for n, place in enumerate(places)
    ]


def join_state(optimizer: Divided, held: list[list[jax.Array]]) -> PyTree:
    """The inverse: a leaf of no module is taken from the first place."""
    homes = optimizer.owners.homes
    found: dict[int, jax.Array] = {}
    for n, leaves in enumerate(held):
        for k, leaf in zip(optimizer.held(n), leaves, strict=True):
            if homes[k] is not None or n == 0:
                found[k] = leaf
    structure: Any = jax.tree.structure(optimizer.owners.state)
    return jax.tree.unflatten(structure, [found[k] for k in range(len(homes))])


def means(update: Update, n: int, carry: Carry) -> tuple:
    """The mean gradients of the modules of a device."""
    scaled = jax.tree.map(lambda x: x * update.scale, carry.sums)
    params = update.plan.own(n, update.plan.params)
    return tuple(map(average, scaled, carry.num_grads, params))


def update_device(
    update: Update, n: int, owned: Owned, carry: Carry, heard: list[jax.Array]
) -> tuple[Owned, Carry]:
    """The weights of one device after an update, and what it keeps with empty sums.

    Args:
      update, n: the update, and the device.
      owned: before it.
      carry: after the last step before it.
      heard: the numbers that were told; none if `update.is_told` is false.
    """
    optimizer, grads = update.optimizer, means(update, n, carry)
    flow, wanted = optimizer.owners.update, optimizer.update_outputs(n)
    inputs = optimizer.update_inputs(n, grads, owned.opt_state, owned.params)
    outputs = [flow.program.outputs[k] for k in wanted]
    found = computed(flow, inputs, _told(optimizer.update_rounds), heard, outputs)
    count = len(optimizer.leaves(n))
    structure: Any = jax.tree.structure(owned.params)
    updates, opt_state = jax.tree.unflatten(structure, found[:count]), found[count:]
    if update.hold:
        trained = dict(zip(optimizer.groups[n], carry.num_grads > 0, strict=True))
        updates = tuple(map(select, trained.values(), updates))
        opt_state = optimizer.hold_back(n, trained, opt_state, owned.opt_state)
    square = squares_of(update.plan, grads)
    carry = carry._replace(
        sums=zeros(carry.sums),
        num_grads=zeros(carry.num_grads),
        squares=carry.squares.at[carry.step // update.every - 1].set(square),
    )
    return Owned(optax.apply_updates(owned.params, updates), opt_state), carry


class Programs(NamedTuple):
    """The compiled programs of an update whose devices tell each other numbers."""

    tell: Sequence[Sequence[Callable]]  # [round][n]
    finish: Sequence[Callable]  # [n]


def programs_of(update: Update, carry_sharding: Callable) -> Programs:
    """The programs; `carry_sharding(plan, n)` is how what device n keeps lies there."""
    optimizer, places = update.optimizer, update.plan.where.places

    def tell(n: int, now: list, owned: Owned, carry: Carry, heard: list) -> list[jax.Array]:
        grads = means(update, n, carry)
        inputs = optimizer.update_inputs(n, grads, owned.opt_state, owned.params)
        flow, told = optimizer.owners.update, _told(optimizer.update_rounds)
        return computed(flow, inputs, told, heard, _said(flow, now, optimizer.groups[n]))

    return Programs(
        [
            [jax.jit(partial(tell, n, now)) for n in range(len(places))]
            for now in optimizer.update_rounds
        ],
        [
            jax.jit(
                partial(update_device, update, n),
                donate_argnums=(0, 1),
                out_shardings=(place.whole, carry_sharding(update.plan, n)),
            )
            for n, place in enumerate(places)
        ],
    )


def run_update(
    update: Update, programs: Programs, owned: list[Owned], carries: list[Carry]
) -> tuple[list[Owned], list[Carry]]:
    """An update on all devices, in rounds of telling numbers."""
    heard = tell_rounds(
        update.optimizer,
        update.plan.where.places,
        update.optimizer.owners.update,
        update.optimizer.update_rounds,
        programs.tell,
        list(zip(owned, carries, strict=True)),
    )
    done = [
        finish(*state, said)
        for finish, *state, said in zip(programs.finish, owned, carries, heard, strict=True)
    ]
    return [new for new, _ in done], [carry for _, carry in done]


def tell_rounds(
    optimizer: Divided,
    places: Places,
    flow: Flow,
    rounds: Rounds,
    tell: Sequence[Sequence[Callable]],
    operands: list[tuple],
) -> list[list[jax.Array]]:
    """What every place has heard after all rounds."""
    heard: list[list[jax.Array]] = [[] for _ in places]
    for now, programs in zip(rounds, tell, strict=True):
        said: dict[Any, jax.Array] = {}
        for n, program in enumerate(programs):
            values = program(*operands[n], heard[n])
            said |= zip(_said(flow, now, optimizer.groups[n]), values, strict=True)
        for n, place in enumerate(places):
            heard[n] = heard[n] + jax.device_put([said[v] for v in now], place.whole)
    return heard


def init_state(plan: Plan, optimizer: Divided, params: tuple) -> PyTree:
    """`tx.init` for parameters that are on their places; so is the state."""
    flow, rounds = optimizer.owners.init, optimizer.init_rounds
    devices, told = range(len(optimizer.groups)), _told(optimizer.init_rounds)

    def values(n: int, wanted: list, params: tuple, heard: list) -> list[jax.Array]:
        inputs = dict(zip(optimizer.leaves(n), jax.tree.leaves(params), strict=True))
        return computed(flow, inputs, told, heard, wanted)

    own = [(plan.own(n, params),) for n in devices]
    tell = [
        [jax.jit(partial(values, n, _said(flow, now, optimizer.groups[n]))) for n in devices]
        for now in rounds
    ]
    heard = tell_rounds(optimizer, plan.where.places, flow, rounds, tell, own)
    held = []
    for n, place in enumerate(plan.where.places):
        wanted = [flow.program.outputs[k] for k in optimizer.held(n)]
        # A state that depends on nothing has no arguments that would say where it is to be.
        program = jax.jit(partial(values, n, wanted), out_shardings=place.whole)
        held.append(program(*own[n], heard[n]))
    return join_state(optimizer, held)


def _told(rounds: Rounds) -> list:
    return [v for now in rounds for v in now]


def _said(flow: Flow, now: list, group: tuple[int, ...]) -> list:
    return [v for v in now if flow.homes[v] in group]
