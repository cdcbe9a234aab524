"""The optimizer where the parameters are: each device updates its own modules.

An optax transformation wants the whole tree. It is traced once, on the shapes of the whole tree,
and a device computes the part of that program that its own leaves depend on (`module_flow.py`
follows them). Single numbers of other modules that this part needs, such as squared norms, are told
by the device that has them, all at once; if they depend on such numbers themselves, in another
round. So every device computes what one device with the whole tree would. What needs arrays of
other modules is refused by `divide`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from sideways_jax.devices.exchange import run_branch
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.devices.module_groups import Groups
from sideways_jax.devices.packing import wrap_keys
from sideways_jax.tools.programs import evaluate, part, shape_of_variable
from sideways_jax.tools.trees import PyTree, same_structure, zeros
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
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jax.ShapeDtypeStruct((0,), jnp.uint32 if is_key else leaf.dtype)

        return jax.tree.unflatten(structure, [shape(k, leaf) for k, leaf in enumerate(leaves)])


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
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
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


def init_on_device(
    divided: Divided, read: Callable[..., tuple], finish: Callable, *operands: PyTree
) -> PyTree:
    """`tx.init`, on one device; to be called inside `shard_map`.

    Args:
      divided: see `divide`.
      read: `read(n, *operands)`, the parameters of the modules of device n.
      finish: `finish(n, state, *operands)`, with the state that device n has.
      operands: what both take, the same shapes on all devices.

    Returns:
      What `finish` does.
    """

    def inputs(n, *operands):
        return dict(zip(_leaves_of(divided, n), jax.tree.leaves(read(n, *operands)), strict=True))

    def last(n, outputs, *operands):
        leaves, structure = jax.tree.flatten(divided.state(n))
        leaves = [outputs[k] if k in outputs else zeros(leaf) for k, leaf in enumerate(leaves)]
        return finish(n, jax.tree.unflatten(structure, leaves), *operands)

    wanted = [divided.held(n) for n in range(len(divided.groups))]
    flow, rounds = divided.owners.init, divided.init_rounds
    return _run(divided.groups, flow, rounds, inputs, wanted, _nothing, last, operands)[0]


def update_on_device(
    divided: Divided,
    read: Callable[..., tuple],
    total: Callable[..., PyTree],
    finish: Callable,
    *operands: PyTree,
) -> tuple[PyTree, PyTree]:
    """`tx.update`, on one device; to be called inside `shard_map`.

    Args:
      divided: see `divide`.
      read: `read(n, *operands)`, the gradients of the modules of device n, the state that it has,
        and the parameters of its modules.
      total: `total(n, *operands)`, numbers to be summed over the devices.
      finish: `finish(n, updates, state, *operands)`, with updates of its modules and its new state.
      operands: what all three take, the same shapes on all devices.

    Returns:
      What `finish` does, and the sum of `total` over the devices.
    """
    owners, groups = divided.owners, divided.groups
    num_params, num_state = len(owners.modules), len(owners.homes)

    def inputs(n, *operands):
        grads, state, params = map(jax.tree.leaves, read(n, *operands))
        own = _leaves_of(divided, n)
        known = dict(zip(own, grads, strict=True))
        known |= {num_params + k: state[k] for k in divided.held(n)}
        return known | dict(zip([num_params + num_state + k for k in own], params, strict=True))

    def last(n, outputs, *operands):
        _, old, params = read(n, *operands)
        updates = [outputs[k] for k in _leaves_of(divided, n)]
        leaves, structure = jax.tree.flatten(old)
        leaves = [outputs.get(num_params + k, leaf) for k, leaf in enumerate(leaves)]
        return finish(
            n,
            jax.tree.unflatten(jax.tree.structure(params), updates),
            jax.tree.unflatten(structure, leaves),
            *operands,
        )

    wanted = [
        [*_leaves_of(divided, n), *(num_params + k for k in divided.held(n))]
        for n in range(len(groups))
    ]
    flow = owners.update
    return _run(groups, flow, divided.update_rounds, inputs, wanted, total, last, operands)


def hold_back(divided: Divided, n: int, trained: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`hold_back.hold_back` for the state that device n has."""
    check_separable(divided.owners)
    homes = divided.owners.homes
    leaves, structure = jax.tree.flatten(new)
    held = dict.fromkeys(divided.held(n))
    chosen = [
        jnp.where(trained[homes[k]], after, before) if k in held and homes[k] is not None else after
        for k, (after, before) in enumerate(zip(leaves, jax.tree.leaves(old), strict=True))
    ]
    return jax.tree.unflatten(structure, chosen)


def _nothing(n: int, *operands: PyTree) -> tuple:
    return ()


def _leaves_of(divided: Divided, n: int) -> list[int]:
    """The numbers of the leaves of the parameters on device n."""
    group = divided.groups[n]
    return [k for k, i in enumerate(divided.owners.modules) if i in group]


def _run(
    groups: Groups,
    flow: Flow,
    rounds: Rounds,
    inputs: Callable[..., dict[int, jax.Array]],
    wanted: list[list[int]],
    total: Callable[..., PyTree],
    last: Callable,
    operands: tuple,
) -> tuple[PyTree, PyTree]:
    """A program of which every device computes its part, after rounds of telling numbers.

    Args:
      groups: the modules of every device.
      flow, rounds: the program, and what is told in each round.
      inputs: `inputs(n, *operands)`, those inputs of the program that device n has.
      wanted: the outputs of the program that device n needs.
      total: `total(n, *operands)`, what is summed over devices, with the first message there is.
      last: `last(n, outputs, *operands)`, with the outputs that device n needs.
      operands: of every device.

    Returns:
      What `last` does, and the sum of `total`.
    """
    program, devices = flow.program, range(len(groups))
    told = [v for now in rounds for v in now]

    def values(n, heard, operands, variables):
        known = {program.inputs[k]: value for k, value in inputs(n, *operands).items()}
        known |= zip(told[: len(heard)], heard, strict=True)
        return evaluate(program, known, variables)

    def tell(n, now, heard, *operands):
        own = [v for v in now if flow.homes[v] in groups[n]]
        found = dict(zip(own, values(n, heard, operands, own), strict=True))
        return _in_vectors(now, found), () if heard else total(n, *operands)

    def finish(n, heard, *operands):
        found = values(n, heard, operands, [program.outputs[k] for k in wanted[n]])
        result = last(n, dict(zip(wanted[n], found, strict=True)), *operands)
        return result, () if heard else total(n, *operands)

    heard: list[jax.Array] = []
    summed = ()
    for now in rounds:
        said = run_branch([partial(tell, n, now) for n in devices], heard, *operands)
        # The others say zero: a sum is what the one device says that knows the number.
        vectors, first = jax.lax.psum(said, DEPTH)
        summed = summed if heard else first
        heard = heard + _out_of_vectors(now, vectors)
    result, rest = run_branch([partial(finish, n) for n in devices], heard, *operands)
    return result, summed if heard else jax.lax.psum(rest, DEPTH)


def _in_vectors(
    variables: list[core.Var], values: dict[core.Var, jax.Array]
) -> dict[str, jax.Array]:
    """Numbers one after the other, in a vector for every dtype; zero where there is no value."""
    vectors: dict[str, list[jax.Array]] = {}
    for v in variables:
        shape = jax.eval_shape(_summable, shape_of_variable(v))
        value = _summable(values[v]) if v in values else jnp.zeros(shape.shape, shape.dtype)
        vectors.setdefault(shape.dtype.name, []).append(value)
    return {dtype: jnp.concatenate(parts) for dtype, parts in vectors.items()}


def _out_of_vectors(variables: list[core.Var], vectors: dict[str, jax.Array]) -> list[jax.Array]:
    """The inverse of `_in_vectors`."""
    start = dict.fromkeys(vectors, 0)
    values = []
    for v in variables:
        like = shape_of_variable(v)
        shape = jax.eval_shape(_summable, like)
        dtype, first = shape.dtype.name, start[shape.dtype.name]
        start[dtype] += shape.size
        values.append(_from_summable(vectors[dtype][first : first + shape.size], like))
    return values


def _summable(x: jax.Array) -> jax.Array:
    """As a vector of numbers of a dtype that all backends can sum."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    dtype = x.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        dtype = dtype if dtype.itemsize > 1 else jnp.float32
    elif dtype.itemsize < 4:  # Truth values, too.
        dtype = jnp.int32
    return jnp.ravel(jnp.asarray(x, dtype))


def _from_summable(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return wrap_keys(x, like)
    return x.astype(like.dtype).reshape(like.shape)


_REFUSED = (
    "this optimizer may give other updates when every device holds only its own modules: {}. A "
    "device knows the arrays of its own modules, and of the others single numbers, such as norms, "
    "sums and counts. Use transformations that keep the arrays of modules apart (optax.flatten and "
    "optax.lbfgs do not), or execution='scan' or 'time_parallel'"
)
