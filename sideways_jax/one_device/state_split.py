"""Splits a module into what runs over all frames at once and what is a recursion over frames.

A module with running statistics looks sequential. But in training only the cheap end of it is: the
update of the statistics, from their old value and a mean. `split_state` finds that end in the
jaxpr of any module, so that `time_parallel` computes the rest for all frames at once.

The jaxpr is cut at the variables that wait for the state of the frame before: what depends on them
is late, the rest early. So are programs inside it: a scan over layers becomes two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from sideways_jax.network.network import Module
from sideways_jax.tools.jaxprs import (
    all_equations,
    body_of,
    evaluate,
    is_call,
    is_checkpoint,
    scan_sizes,
)
from sideways_jax.tools.trees import PyTree, same_structure, shape_of


class Program(NamedTuple):
    """A module's `apply` as a program, for arguments of certain shapes."""

    closed: core.ClosedJaxpr  # (*params, *state, *x, *rng) -> (*y, *new_state), all leaves
    num_params: int  # leaves, likewise below
    changes: tuple[bool, ...]  # of the state: which of its leaves differ from frame to frame
    y_tree: Any  # structure
    state_tree: Any


class SplitModule(NamedTuple):
    """A module in two parts that together do what `module.apply` does."""

    # forward(params, state, x, rng) -> (y, residuals), which uses only those leaves of the state
    # that never change.
    forward: Callable[..., tuple[PyTree, list[jax.Array]]]
    # update(state, residuals) -> new_state; None if the state never changes.
    update: Callable[[PyTree, list[jax.Array]], PyTree] | None
    by_frame: tuple[bool, ...]  # of the residuals: which of them depend on x or rng


def trace(
    module: Module, params: PyTree, state: PyTree, x: PyTree, rng: jax.Array | None, *, train: bool
) -> Program:
    """The program of `module.apply`; arguments as in `split_state`.

    Raises:
      ValueError: if the new state does not have the structure of the old one.
    """

    def apply(params, state, x, rng):
        return module.apply(params, state, x, train=train, rng=rng)

    shapes = jax.tree.map(shape_of, (params, state, x, rng))
    closed, (y, new_state) = jax.make_jaxpr(apply, return_shape=True)(*shapes)
    state_tree = jax.tree.structure(state)
    if not same_structure(new_state, state):
        raise ValueError(
            f"the new state {jax.tree.structure(new_state)} does not have the structure of the "
            f"old one, {state_tree}"
        )
    first = len(jax.tree.leaves(params))
    origins = _origins(closed.jaxpr)[len(jax.tree.leaves(y)) :]
    changes = tuple(origin != first + n for n, origin in enumerate(origins))
    return Program(closed, first, changes, jax.tree.structure(y), state_tree)


def split_state(
    module: Module, params: PyTree, state: PyTree, x: PyTree, rng: jax.Array | None, *, train: bool
) -> SplitModule:
    """Splits `module.apply` at its state.

    Args:
      module: any module.
      params, state, x, rng: arguments of `apply`, or their shapes.
      train: fixed.

    Raises:
      ValueError: if the output depends on a part of the state that changes (a recurrent module,
        say): frames then have to follow one another.
    """
    split = split_program(trace(module, params, state, x, rng, train=train))
    if split is None:
        raise ValueError(
            "its output depends on a state that changes from frame to frame, so that frames cannot "
            "be computed at the same time: use execution='scan'"
        )
    return split


def split_program(program: Program) -> SplitModule | None:
    """`split_state` of a traced module; None if the output depends on a state that changes."""
    plan = _plan(program, program.changes)
    num_y = program.y_tree.num_leaves
    if any(plan.late[:num_y]):
        return None
    changes, first = program.changes, program.num_params
    if not any(changes):

        def whole(*args):
            leaves = jax.tree.leaves(args)
            y = jax.core.eval_jaxpr(program.closed.jaxpr, program.closed.consts, *leaves)[:num_y]
            return jax.tree.unflatten(program.y_tree, y), []

        return SplitModule(whole, None, ())

    def forward(params, state, x, rng):
        args = jax.tree.leaves((params, state, x, rng))
        last = first + len(changes)
        late = [first <= n < last and changes[n - first] for n in range(len(args))]
        early = [None if is_late else arg for arg, is_late in zip(args, late, strict=True)]
        out, residuals = _run_early(plan, early)
        return jax.tree.unflatten(program.y_tree, out[:num_y]), residuals

    def update(state, residuals):
        leaves = jax.tree.leaves(state)
        args: list = [None] * len(plan.body.jaxpr.invars)
        args[first : first + len(leaves)] = [
            leaf if changing else None for leaf, changing in zip(leaves, changes, strict=True)
        ]
        new = _run_late(plan, args, residuals)[num_y:]
        leaves = [
            value.astype(leaf.dtype) if changing else leaf
            for leaf, value, changing in zip(leaves, new, changes, strict=True)
        ]
        return jax.tree.unflatten(program.state_tree, leaves)

    return SplitModule(forward, update, plan.by_frame)


def remembered(program: Program) -> tuple[bool, ...]:
    """Which leaves of the state change and are seen by the output, of all leaves of the state."""
    num_y = program.y_tree.num_leaves

    def seen(n):
        alone = [k == n for k in range(len(program.changes))]
        return any(_plan(program, alone).late[:num_y])

    return tuple(changes and seen(n) for n, changes in enumerate(program.changes))


def draws_alike(program: Program) -> bool:
    """Whether random numbers are the same for one frame and under `jax.vmap` over frames.

    Those of threefry keys are, which JAX uses by default. Others are not: the generator "rbg" draws
    once for a whole batch of keys, from the first, and "unsafe_rbg" even derives keys like that.
    """

    def alike(eqn):
        if eqn.primitive.name in ("rng_bit_generator", "rng_uniform"):
            return False
        dtypes = [getattr(v.aval, "dtype", None) for v in (*eqn.invars, *eqn.outvars)]
        keys = [d for d in dtypes if d is not None and _is_key(d)]
        return all(dtype.name == "key<fry>" for dtype in keys)

    return all(map(alike, all_equations(program.closed.jaxpr)))


def _is_key(dtype: Any) -> bool:
    """Whether it is the dtype of a typed PRNG key."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


class _Plan(NamedTuple):
    """A program in two parts."""

    body: core.ClosedJaxpr
    steps: tuple[_Step, ...]
    needed: tuple[core.Var, ...]  # early values that the late part uses
    late: tuple[bool, ...]  # of the outputs: which of them the late part gives
    moving: tuple[bool, ...]  # of the outputs: which of them depend on the frame; early ones alone
    by_frame: tuple[bool, ...]  # of all residuals: first those `needed`, then those of the steps


class _Step(NamedTuple):
    """An equation: early, late, or with a program inside that is cut in two itself."""

    eqn: core.JaxprEqn
    late: tuple[bool, ...]  # of the inputs
    inside: _Plan | None

    @property
    def is_early(self) -> bool:
        return not any(self.late)


def _plan(program: Program, changes: Sequence[bool]) -> _Plan:
    """The cut of a program at some leaves of its state."""
    num_inputs = len(program.closed.jaxpr.invars)
    first, last = program.num_params, program.num_params + len(changes)
    late = [False] * first + list(changes) + [False] * (num_inputs - last)
    moving = [n >= last for n in range(num_inputs)]
    return _cut(program.closed, late, moving, [False] * program.y_tree.num_leaves + list(changes))


def _cut(
    body: core.ClosedJaxpr,
    late_in: Sequence[bool],
    moving_in: Sequence[bool],
    late_out: Sequence[bool],
) -> _Plan:
    """Cuts a program.

    Args:
      body: the program.
      late_in: which of its inputs only the late part gets.
      moving_in: which of its inputs depend on the frame.
      late_out: which of its outputs the late part gives in any case.
    """
    jaxpr = body.jaxpr
    late = {v for v, is_late in zip(jaxpr.invars, late_in, strict=True) if is_late}
    moving = {v for v, moves in zip(jaxpr.invars, moving_in, strict=True) if moves}
    steps, used = [], []
    for eqn in jaxpr.eqns:
        late_here = tuple(v in late for v in _hashable(eqn.invars))
        moving_here = [v in moving for v in _hashable(eqn.invars)]
        inside = _cut_inside(eqn, late_here, moving_here) if any(late_here) else None
        if inside is not None:
            late.update(v for v, is_late in zip(eqn.outvars, inside.late, strict=True) if is_late)
            moving.update(v for v, m in zip(eqn.outvars, inside.moving, strict=True) if m)
        elif any(late_here):
            late.update(eqn.outvars)
            used += eqn.invars
        elif any(moving_here):
            moving.update(eqn.outvars)
        steps.append(_Step(eqn, late_here, inside))
    outvars = _hashable(jaxpr.outvars)
    late_out = [v in late or forced for v, forced in zip(outvars, late_out, strict=True)]
    used += [v for v, is_late in zip(outvars, late_out, strict=True) if is_late]
    known = {*late, *jaxpr.constvars}
    needed = tuple(dict.fromkeys(v for v in used if isinstance(v, core.Var) and v not in known))
    return _Plan(
        body=body,
        steps=tuple(steps),
        needed=needed,
        late=tuple(late_out),
        moving=tuple(v in moving for v in outvars),
        by_frame=sum(
            (step.inside.by_frame for step in steps if step.inside is not None),
            start=tuple(v in moving for v in needed),
        ),
    )


def _cut_inside(eqn: core.JaxprEqn, late: Sequence[bool], moving: Sequence[bool]) -> _Plan | None:
    """Cuts the program inside an equation, if it is of a kind that we know to run in two parts."""
    if is_call(eqn) or is_checkpoint(eqn):
        return _cut(body_of(eqn), late, moving, [False] * len(eqn.outvars))
    if eqn.primitive.name != "scan":
        return None
    num_constants, num_carry = scan_sizes(eqn)
    carried = slice(num_constants, num_constants + num_carry)
    late, moving = list(late), list(moving)
    while True:  # What is late after one iteration is late in the next.
        forced = late[carried] + [False] * (len(eqn.outvars) - num_carry)
        plan = _cut(body_of(eqn), late, moving, forced)
        after = list(plan.late[:num_carry]), _either(moving[carried], plan.moving[:num_carry])
        if after == (late[carried], moving[carried]):
            return plan
        late[carried], moving[carried] = after


def _run_early(plan: _Plan, args: Sequence) -> tuple[list, list[jax.Array]]:
    """The early part, None for what is late: `(outputs, residuals)`."""
    values, read = _environment(plan, args)
    residuals = []
    for step in plan.steps:
        inputs = [
            None if late else read(v) for v, late in zip(step.eqn.invars, step.late, strict=True)
        ]
        if step.is_early:
            values |= evaluate(plan.body.jaxpr, step.eqn, inputs)
        elif step.inside is not None:
            outputs, kept = _run_early_inside(step.eqn, step.inside, inputs)
            values |= zip(step.eqn.outvars, outputs, strict=True)
            residuals += kept
    outputs = [
        None if late else read(v)
        for v, late in zip(plan.body.jaxpr.outvars, plan.late, strict=True)
    ]
    return outputs, [values[v] for v in plan.needed] + residuals


def _run_early_inside(
    eqn: core.JaxprEqn, plan: _Plan, inputs: list
) -> tuple[list, list[jax.Array]]:
    if is_call(eqn):
        return _run_early(plan, inputs)
    if is_checkpoint(eqn):
        options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
        return jax.checkpoint(lambda inputs: _run_early(plan, inputs), **options)(inputs)

    def body(carry, xs):
        outputs, residuals = _run_early(plan, [*constants, *carry, *xs])
        return outputs[: len(carry)], (outputs[len(carry) :], residuals)

    constants, carry, xs = _scan_parts(eqn, inputs)
    carry, (ys, residuals) = jax.lax.scan(body, carry, xs, **_scan_options(eqn))
    return [*carry, *ys], residuals


def _run_late(plan: _Plan, args: Sequence, residuals: Sequence[jax.Array]) -> list:
    """The late part, None for what is early."""
    values, read = _environment(plan, args)
    values |= zip(plan.needed, residuals[: len(plan.needed)], strict=True)
    rest = list(residuals[len(plan.needed) :])
    for step in plan.steps:
        if step.inside is not None:
            size = len(step.inside.by_frame)
            own, rest = rest[:size], rest[size:]
            inputs = [
                read(v) if late else None
                for v, late in zip(step.eqn.invars, step.late, strict=True)
            ]
            outputs = _run_late_inside(step.eqn, step.inside, inputs, own)
            values |= zip(step.eqn.outvars, outputs, strict=True)
        elif not step.is_early:
            values |= evaluate(plan.body.jaxpr, step.eqn, [read(v) for v in step.eqn.invars])
    return [
        read(v) if late else None
        for v, late in zip(plan.body.jaxpr.outvars, plan.late, strict=True)
    ]


def _run_late_inside(
    eqn: core.JaxprEqn, plan: _Plan, inputs: list, residuals: list[jax.Array]
) -> list:
    if eqn.primitive.name != "scan":  # Nothing is differentiated here: a checkpoint is a call.
        return _run_late(plan, inputs, residuals)

    def body(carry, xs_and_residuals):
        xs, residuals = xs_and_residuals
        outputs = _run_late(plan, [*constants, *carry, *xs], residuals)
        return outputs[: len(carry)], outputs[len(carry) :]

    constants, carry, xs = _scan_parts(eqn, inputs)
    carry, ys = jax.lax.scan(body, carry, (xs, residuals), **_scan_options(eqn))
    return [*carry, *ys]


def _environment(plan: _Plan, args: Sequence) -> tuple[dict, Callable]:
    """The values of a program's variables, constants and arguments to begin with; how to read."""
    jaxpr = plan.body.jaxpr
    values = dict(zip(jaxpr.constvars, plan.body.consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)
    return values, lambda v: v.val if isinstance(v, core.Literal) else values[v]


def _scan_parts(eqn: core.JaxprEqn, inputs: list) -> tuple[list, list, list]:
    num_constants, num_carry = scan_sizes(eqn)
    first_x = num_constants + num_carry
    return inputs[:num_constants], inputs[num_constants:first_x], inputs[first_x:]


def _scan_options(eqn: core.JaxprEqn) -> dict:
    return {name: eqn.params[name] for name in ("length", "reverse", "unroll")}


def _origins(jaxpr: core.Jaxpr) -> list[int | None]:
    """For every output the input that it is, unchanged; None if there is none."""
    source = {v: n for n, v in enumerate(jaxpr.invars)}
    for eqn in jaxpr.eqns:
        is_scan = eqn.primitive.name == "scan"
        if not (is_scan or is_call(eqn) or is_checkpoint(eqn)):
            continue
        num_constants, num_carry = scan_sizes(eqn) if is_scan else (0, 0)
        for n, (v, origin) in enumerate(
            zip(eqn.outvars, _origins(body_of(eqn).jaxpr), strict=True)
        ):
            if origin is None:
                continue
            # Of a scan: carried on as it came, or an entry of `xs` that becomes that of `ys`.
            kept = (
                origin == num_constants + n
                if n < num_carry
                else origin >= num_constants + num_carry
            )
            (input_,) = _hashable([eqn.invars[origin]])
            if kept and input_ in source:
                source[v] = source[input_]
    return [source.get(v) for v in _hashable(jaxpr.outvars)]


def _hashable(atoms: Sequence) -> list:
    """Variables, and None for literals, which have no hash."""
    return [v if isinstance(v, core.Var) else None for v in atoms]


def _either(a: Sequence[bool], b: Sequence[bool]) -> list[bool]:
    return [x or y for x, y in zip(a, b, strict=True)]
