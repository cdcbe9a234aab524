"""The optimizer on a mesh: every device updates its own modules, in one program for all.

`training/division.py` says which part is whose.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend import core

from sideways_jax.devices.exchange import run_branch
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.devices.module_groups import Groups
from sideways_jax.tools.keys import is_key, wrap_keys
from sideways_jax.tools.programs import shape_of_variable
from sideways_jax.tools.trees import PyTree, zeros
from sideways_jax.training.division import Divided, Rounds, computed
from sideways_jax.training.module_flow import Flow


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
        return dict(zip(divided.leaves(n), jax.tree.leaves(read(n, *operands)), strict=True))

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
    even: bool = False,
) -> tuple[PyTree, PyTree]:
    """`tx.update`, on one device; to be called inside `shard_map`.

    Args:
      divided: see `divide`.
      read: `read(n, *operands)`, the gradients of the modules of device n, the state that it has,
        and the parameters of its modules.
      total: `total(n, *operands)`, numbers to be summed over the devices.
      finish: `finish(n, updates, state, *operands)`, with updates of its modules and its new state.
      operands: what all three take, the same shapes on all devices.
      even: whether devices may all compute the same of it.

    Returns:
      What `finish` does, and the sum of `total` over the devices.
    """

    def inputs(n, *operands):
        grads, state, params = read(n, *operands)
        leaves = jax.tree.leaves(state)
        return divided.update_inputs(n, grads, [leaves[k] for k in divided.held(n)], params)

    def last(n, outputs, *operands):
        _, old, params = read(n, *operands)
        num_params = len(divided.owners.modules)
        updates = [outputs[k] for k in divided.leaves(n)]
        leaves, structure = jax.tree.flatten(old)
        leaves = [outputs.get(num_params + k, leaf) for k, leaf in enumerate(leaves)]
        return finish(
            n,
            jax.tree.unflatten(jax.tree.structure(params), updates),
            jax.tree.unflatten(structure, leaves),
            *operands,
        )

    wanted = [divided.update_outputs(n) for n in range(len(divided.groups))]
    flow, rounds = divided.owners.update, divided.update_rounds
    return _run(divided.groups, flow, rounds, inputs, wanted, total, last, operands, even=even)


def _nothing(n: int, *operands: PyTree) -> tuple:
    return ()


def _run(
    groups: Groups,
    flow: Flow,
    rounds: Rounds,
    inputs: Callable[..., dict[int, jax.Array]],
    wanted: list[list[int]],
    total: Callable[..., PyTree],
    last: Callable,
    operands: tuple,
    *,
    even: bool = False,
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
      even: whether devices may all compute the same.

    Returns:
      What `last` does, and the sum of `total`.
    """
    program, devices = flow.program, range(len(groups))
    told = [v for now in rounds for v in now]

    def values(n, heard, operands, variables):
        return computed(flow, inputs(n, *operands), told, heard, variables)

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
        tells = [partial(tell, n, now) for n in devices]
        said = run_branch(tells, heard, *operands, even=even)
        # The others say zero: a sum is what the one device says that knows the number.
        vectors, first = jax.lax.psum(said, DEPTH)
        summed = summed if heard else first
        heard = heard + _out_of_vectors(now, vectors)
    result, rest = run_branch([partial(finish, n) for n in devices], heard, *operands, even=even)
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
    if is_key(x):
        x = jax.random.key_data(x)
    dtype = x.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        dtype = dtype if dtype.itemsize > 1 else jnp.float32
    elif dtype.itemsize < 4:  # Truth values, too.
        dtype = jnp.int32
    return jnp.ravel(jnp.asarray(x, dtype))


def _from_summable(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    if is_key(like):
        return wrap_keys(x, like)
    return x.astype(like.dtype).reshape(like.shape)
