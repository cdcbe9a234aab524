"""An optimizer divided among devices, each of which has the parameters of its own modules.

An optax transformation wants the whole tree. It is traced once, on the shapes of the whole tree,
and a device computes the part of that program that its own leaves depend on (`module_flow.py`
follows them). Single numbers of other modules that this part needs, such as squared norms, are told
by the device that has them, all at once; if they depend on such numbers themselves, in another
round. So every device computes what one device with the whole tree would. What needs arrays of
other modules is refused by `divide`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from sideways_jax.devices.module_groups import Groups
from sideways_jax.tools.keys import is_key, wrap_keys
from sideways_jax.tools.programs import evaluate, part
from sideways_jax.tools.trees import PyTree, same_structure
from sideways_jax.training.hold_back import check_separable
from sideways_jax.training.module_flow import Flow
from sideways_jax.training.optimizer_trace import LOOKS_AT_VALUES
from sideways_jax.training.ownership import Ownership, find_owners

Rounds = list[list[core.Var]]  # the numbers that are told in each round


class Divided(NamedTuple):
    """An optimizer over N devices."""

    groups: Groups  # the modules of every device
    owners: Ownership
    init_rounds: Rounds
    update_rounds: Rounds

    @property
    def owner(self) -> PyTree:
        """A pytree like the state: the module that each leaf belongs to, None for all of them."""
        return jax.tree.unflatten(jax.tree.structure(self.owners.state), self.owners.homes)

    def held(self, n: int) -> list[int]:
        """The numbers of the leaves of the state that device n has."""
        group = self.groups[n]
        return [k for k, i in enumerate(self.owners.homes) if i is None or i in group]

    def state(self, n: int) -> PyTree:
        """The shapes of the state on device n; of size 0 where a leaf is on another device."""
        leaves, structure = jax.tree.flatten(self.owners.state)
        held = set(self.held(n))

        def shape(k, leaf):
            if k in held:
                return leaf
            return jax.ShapeDtypeStruct((0,), jnp.uint32 if is_key(leaf) else leaf.dtype)

        return jax.tree.unflatten(structure, [shape(k, leaf) for k, leaf in enumerate(leaves)])

    def leaves(self, n: int) -> list[int]:
        """The numbers of the leaves of the parameters on device n."""
        group = self.groups[n]
        return [k for k, i in enumerate(self.owners.modules) if i in group]

    def update_inputs(
        self, n: int, grads: PyTree, state: Sequence[jax.Array], params: PyTree
    ) -> dict[int, jax.Array]:
        """The inputs of the update's program that device n has, by number.

        Args:
          n: the device.
          grads, params: of its modules.
          state: the leaves of the state that it holds (`held`).
        """
        own, num_params = self.leaves(n), len(self.owners.modules)
        first_param = num_params + len(self.owners.homes)
        known = dict(zip(own, jax.tree.leaves(grads), strict=True))
        known |= zip([num_params + k for k in self.held(n)], state, strict=True)
        return known | dict(
            zip([first_param + k for k in own], jax.tree.leaves(params), strict=True)
        )

    def update_outputs(self, n: int) -> list[int]:
        """The numbers of the outputs of the update's program that device n needs.

        Updates of the leaves of its parameters, then the leaves of the state that it holds.
        """
        return [*self.leaves(n), *(len(self.owners.modules) + k for k in self.held(n))]

    def hold_back(
        self,
        n: int,
        trained: Mapping[int, jax.Array] | jax.Array,
        new: Sequence[jax.Array],
        old: Sequence[jax.Array],
    ) -> list[jax.Array]:  # fmt: skip
        """`hold_back.hold_back` for the leaves of the state that device n holds.

        Args:
          n: the device.
          trained: by module, whether it has a gradient.
          new, old: the leaves after and before an update.
        """
        check_separable(self.owners)
        homes = [self.owners.homes[k] for k in self.held(n)]
        return [
            after if i is None else jnp.where(trained[i], after, before)
            for i, after, before in zip(homes, new, old, strict=True)
        ]


def computed(
    flow: Flow,
    inputs: Mapping[int, jax.Array],
    told: Sequence[core.Var],
    heard: Sequence[jax.Array],
    wanted: Sequence[core.Var | core.Literal],
) -> list[jax.Array]:
    """Values of a program, out of some of its inputs and of numbers that other devices told.

    Args:
      flow: the program.
      inputs: by number.
      told, heard: variables, and the values of the first of them.
      wanted: variables.
    """
    known = {flow.program.inputs[k]: value for k, value in inputs.items()}
    known |= zip(told[: len(heard)], heard, strict=True)
    return evaluate(flow.program, known, wanted)


def divide(tx: optax.GradientTransformation, params: tuple, groups: Groups) -> Divided:
    """Divides an optimizer among devices; only shapes are looked at.

    Args:
      tx: the transformation.
      params: shapes of the parameters of D modules.
      groups: the modules of every device.

    Raises:
      ValueError: if a device would need arrays of a module that it does not have, or if the
        optimizer cannot be used at all; see `optimizer_trace.trace`.
    """
    try:
        owners = find_owners(tx, params)
    except LOOKS_AT_VALUES as error:
        reason = str(error).splitlines()[0]
        raise ValueError(_REFUSED.format(f"it looks at values, {reason}")) from error
    owners = owners._replace(init=_portable(owners.init), update=_portable(owners.update))
    if len(groups) == 1:
        return Divided(groups, owners, [], [])
    _check(owners)
    return Divided(groups, owners, _rounds(owners.init), _rounds(owners.update))


def check_local(tx: optax.GradientTransformation, params: tuple, groups: Groups) -> PyTree:
    """The module that each leaf of the state belongs to, None for what all devices have.

    Arguments and errors are those of `divide`.
    """
    return divide(tx, params, groups).owner


def _check(owners: Ownership) -> None:
    """Raises ValueError for an optimizer that cannot be divided."""
    for reason in owners.update.refused + owners.init.refused:
        if reason is not None:
            raise ValueError(_REFUSED.format(reason))
    if owners.has_effects:
        raise ValueError(
            _REFUSED.format("it prints or calls functions of the host (jax.debug, io_callback)")
        )
    old = jax.tree_util.tree_leaves_with_path(owners.state)
    if not same_structure(owners.new_state, owners.state):
        raise ValueError(_REFUSED.format("the structure of its state changes with an update"))
    for (path, before), after in zip(old, jax.tree.leaves(owners.new_state), strict=True):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                _REFUSED.format(
                    f"{jax.tree_util.keystr(path)} of its state changes with an update from "
                    f"{before.dtype}{list(before.shape)} to {after.dtype}{list(after.shape)}"
                )
            )


def _portable(flow: Flow) -> Flow:
    """With arrays that the optimizer closes over in a form that any device can take."""

    def one(value):
        if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
            return value
        if len(value.sharding.device_set) == 1:
            return value
        if not (value.is_fully_addressable or value.is_fully_replicated):
            raise ValueError(
                f"the optimizer closes over an array {list(value.shape)} that lies on several "
                "processes: make a copy on every process (jax.experimental.multihost_utils), or "
                "keep it in the state of the optimizer"
            )
        if is_key(value):
            with jax.ensure_compile_time_eval():
                return wrap_keys(np.asarray(jax.random.key_data(value)), value)
        return np.asarray(value)

    constants = {v: one(value) for v, value in flow.program.constants.items()}
    return flow._replace(program=flow.program._replace(constants=constants))


def _rounds(flow: Flow) -> Rounds:
    """The numbers that are told in each round, without those that no result depends on."""
    program, rounds = flow.program, []
    given = {*program.inputs, *program.constants}
    _, used = part(program, given | flow.rounds.keys(), program.outputs)
    needed = [v for v in used if v in flow.rounds]
    for number in range(max(flow.rounds.values(), default=0), 0, -1):
        now = [v for v in needed if flow.rounds[v] == number]
        before = {v for v, n in flow.rounds.items() if n < number}
        _, used = part(program, given | before, now)
        needed += [v for v in used if v in before and v not in needed]
        rounds.append(now)
    return [now for now in reversed(rounds) if now]


_REFUSED = (
    "this optimizer may give other updates when every device holds only its own modules: {}. A "
    "device knows the arrays of its own modules, and of the others single numbers, such as norms, "
    "sums and counts. Use transformations that keep the arrays of modules apart (optax.flatten and "
    "optax.lbfgs do not), or execution='scan' or 'time_parallel'"
)
