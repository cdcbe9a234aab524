"""States of modules on replicas that each see their share of a batch.

Running statistics, floating-point numbers, are averaged over replicas. An integer, such as a
counter, is not: it has to be the same on every replica, and on one device with the whole batch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sideways_jax.devices.mesh import DATA
from sideways_jax.network.module import key_shape
from sideways_jax.network.network import Module, Network
from sideways_jax.tools.programs import dependent, inline_calls, part
from sideways_jax.tools.trees import PyTree, shape_of, wide


def check_counters(
    network: Network, params: tuple, state: tuple, whole: PyTree, share: PyTree
) -> None:
    """Refuses integer states that depend on the examples of a batch, or on their number.

    It traces the modules; nothing is computed.

    Args:
      network: D modules.
      params, state: tuples of D pytrees, or their shapes.
      whole, share: shapes of a batch of frames, and of the part of it that one replica gets.

    Raises:
      ValueError: if replicas would disagree with one another, or with one device.
    """
    names = [
        [(k, path) for k, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree))
         if not jnp.issubdtype(leaf.dtype, jnp.inexact)]
        for tree in state
    ]  # fmt: skip
    if not any(names):
        return
    inputs = {
        size: network.inputs(frame, network.activation_shapes(params, state, frame))
        for size, frame in (("whole", whole), ("share", share))
    }
    for i, module in enumerate(network.modules):
        if not names[i]:
            continue
        one, all_of_it = (
            _Traced(module, params[i], state[i], inputs[size][i]) for size in ("share", "whole")
        )
        for k, path in names[i]:
            if k in one.depends_on_data or one.program_of(k) != all_of_it.program_of(k):
                batch = jax.tree.leaves(whole)[0].shape[0]
                part = jax.tree.leaves(share)[0].shape[0]
                raise ValueError(
                    f"the state{jax.tree_util.keystr(path)} of module {i} (0-based) is an integer "
                    "that depends on the examples of a batch or on their number: "
                    f"{batch // part} replicas with {part} examples each would count otherwise "
                    f"than one device with {batch}. Keep a floating-point mean over the batch in "
                    "its place, which replicas average, or set data=1"
                )


def mean_over_replicas(tree: PyTree) -> PyTree:
    """Means over replicas, of gradients or running statistics; integers, such as counters, agree.

    Added up in the `trees.wide` dtypes: bfloat16 would lose the smaller ones.
    """

    def mean(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jax.lax.pmean(x.astype(wide(x.dtype)), DATA).astype(x.dtype)

    return jax.tree.map(mean, tree)


class _Traced:
    """The program that computes the new state of a module in training.

    Calls, such as `jax.checkpoint`, are inlined. The result of a `while` loop or a conditional with
    data among its inputs counts as dependent on data.
    """

    def __init__(self, module: Module, params: PyTree, state: PyTree, x: PyTree):
        def new_state(params, state, x, rng):
            return module.apply(params, state, x, train=True, rng=rng)[1]

        arguments = (*jax.tree.map(shape_of, (params, state, x)), key_shape())
        # Modules may use collectives over replicas; the size of that axis does not matter here.
        self._program = inline_calls(jax.make_jaxpr(new_state, axis_env=[(DATA, 1)])(*arguments))
        inputs = self._program.inputs
        counts = [len(jax.tree.leaves(tree)) for tree in arguments]
        first, after = counts[0], counts[0] + counts[1]
        data = set(inputs[after:])  # Frames, and keys: each replica has its own.
        while True:  # The next step reads the states that this one made dependent on data.
            outputs = dependent(self._program, data)
            more = {v for v, out in zip(inputs[first:after], outputs, strict=True) if out}
            if more <= data:
                break
            data |= more
        self.depends_on_data = {k for k, out in enumerate(outputs) if out}

    def program_of(self, k: int) -> list:
        """The program of the k-th leaf of the new state, in a form that can be compared."""
        program, output = self._program, self._program.outputs[k]
        if isinstance(output, core.Literal):
            return [str(output.val)]
        equations, used = part(program, {*program.inputs, *program.constants}, [output])
        described: list[Any] = [program.inputs.index(v) for v in used if v in program.inputs]
        described += [str(program.constants[v]) for v in used if v in program.constants]
        for eqn in equations:
            literals = [str(v.val) for v in eqn.invars if isinstance(v, core.Literal)]
            described.append((eqn.primitive.name, literals, str(eqn.params)))
        return described
