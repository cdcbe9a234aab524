"""The rule: what a module does at a computation step, a group of modules, and all of them.

At each computation step module `H_i` takes the newest activation from below and the newest
pseudo-gradient from above, runs its forward pass on the one and back-propagates the other through
that same, current input. Both results go one module further and are used at the next step. Nothing
is kept, nothing waits (Malinowski et al., CVPR 2020, section 3.4, Eq. 3 and 4).

The paper counts modules, frames and steps from 1. Here all indices are 0-based: at step t of an
episode that starts with an empty pipeline, module i of D

* holds an activation for t >= i, which comes from frame t - i;
* receives a pseudo-gradient for t >= 2(D-1) - i, which comes from the loss of frame
  t - 2(D-1) + i, that is 2(D-1-i) frames before its activation: none at the top, where the
  gradient is exact, 2D-2 at the bottom;
* so gives gamma_i = K - 2(D-1) + i gradients in an episode of K frames.

With shortcuts that is what the main path does; `wiring.py` says what else arrives, and when.

The rule does not use these formulas. The number of the frame goes along with every signal, -1 for
"nothing there yet" (a bubble), and what is valid follows; the formulas are what tests assert.

`run_group` is the whole rule. One device runs all modules with it (`computation_step`), a device of
a pipeline runs its own group of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.module import Module, module_key
from sideways_jax.network.network import Network
from sideways_jax.network.wiring import returned
from sideways_jax.rule import fifo
from sideways_jax.rule.fifo import Fifo, Past
from sideways_jax.rule.in_flight import InFlight, Numbers, tick
from sideways_jax.rule.task import LossFn, Task
from sideways_jax.tools.trees import PyTree, each_example, masked_mean, select, shape_of


class Part(NamedTuple):
    """Where in a larger network some modules are, by numbers that only a running program knows."""

    first: jax.Array  # int32[], the number of the lowest of them
    has_top: jax.Array  # bool[], whether the highest of them is the top


class ModuleStep(NamedTuple):
    """What one module gives at one computation step."""

    output: PyTree  # h_i, sent up
    state: PyTree  # of the module, after this step
    grads: PyTree  # pseudo-gradient of the parameters theta_i, Eq. 3
    pseudo_gradient: PyTree  # of the input h_{i-1}, sent down, Eq. 4; a tuple with shortcuts
    fifo: PyTree = ()  # what the module keeps; nothing with Sideways


def module_step(
    module: Module,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    pseudo_gradient: PyTree | Callable[[PyTree], PyTree],
    *,
    train: bool = True,
    rng: jax.Array | None = None,
) -> ModuleStep:
    """One module, one step: the forward pass, and the vjp at the same input (Eq. 3 and 4).

    Args:
      module: `H_i`.
      params, state: its parameters `theta_i` and its state.
      x: the newest activation `h_{i-1}` from below, `[B, ...]`, or a tuple with shortcuts.
      pseudo_gradient: the newest cotangent of this module's output from above, shaped like the
        output; or a function that makes it from the output, for the top module, whose loss
        gradient is that of the same step.
      train: passed on to the module.
      rng: the key of this module and frame.

    >>> import jax.numpy as jnp
    >>> linear = Module(lambda key, x: (jnp.float32(3.0), ()),
    ...                 lambda params, state, x, *, train, rng: (params * x, state))
    >>> one = module_step(linear, jnp.float32(3.0), (), jnp.float32(2.0), jnp.float32(10.0))
    >>> one.output.item(), one.grads.item(), one.pseudo_gradient.item()
    (6.0, 20.0, 30.0)
    """

    def forward(params: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        return module.apply(params, state, x, train=train, rng=rng)

    output, pull_back, new_state = jax.vjp(forward, params, x, has_aux=True)
    if callable(pseudo_gradient):
        pseudo_gradient = pseudo_gradient(output)
    grads, sent_down = pull_back(pseudo_gradient)
    return ModuleStep(output, new_state, grads, sent_down)


def run_group(
    task: Task,
    group: tuple[int, ...],
    params: tuple,
    state: tuple,
    inputs: tuple,
    incoming: tuple,
    target: PyTree,
    numbers: Numbers,
    rng: jax.Array | None,
    axis: str | None = None,
    *,
    fifos: tuple | None = None,
    recompute: bool = True,
    part: Part | None = None,
) -> tuple[ModuleStep, ...]:
    """One step of neighbouring modules: the whole of the Sideways rule (section 3.4, Eq. 3 and 4).

    All modules read what the step before sent, so their order does not matter, and all use the
    parameters of now. Sideways keeps nothing; with `fifos` the rule is pipelined backprop. A module
    that holds a bubble computes like the others, but nothing of it is used: what it sends is again
    marked as a bubble, and its state and gradients are selected, not multiplied, so that not even a
    NaN gets through.

    Where every example has frame numbers of its own (`Numbers` with an axis B), examples that are
    no bubbles stand in for those that are: see `_with_stand_ins`.

    Args:
      task: what is trained.
      group: the numbers of the modules, 0-based.
      params, state: one pytree for each of them.
      inputs, incoming: likewise, what each hears (`wiring.heard`) and the pseudo-gradient that has
        come back to it (`wiring.returned`), `[B, ...]`; for the top module the latter is not looked
        at.
      target: that the output of this step is paired with, if the top module is in the group.
      numbers: of all D modules.
      rng: of the run; module i draws from `fold_in(fold_in(rng, i), number of its frame)`.
      axis: of the mesh, over which the batch is split; stand-ins are then of the whole batch.
      fifos: with pipelined backprop, what each of them keeps (`fifo.py`).
      recompute: likewise, whether inputs are kept, or residuals.
      part: if the task is a part of a larger one: its top module then takes the gradient of the
        loss, or the pseudo-gradient that has come back to it.

    Returns:
      For each of them, what it sends, its new state, and its gradients: of the mean over the batch,
      zero where no example has one.
    """
    step = _Step(task, target, numbers, rng, axis, recompute, part)
    fifos = ((),) * len(group) if fifos is None else fifos
    return tuple(map(partial(_one_module, step), group, params, state, inputs, incoming, fifos))


class _Step(NamedTuple):
    """What all modules of a group share; see `run_group`."""

    task: Task
    target: PyTree
    numbers: Numbers
    rng: jax.Array | None
    axis: str | None
    recompute: bool
    part: Part | None


def _one_module(
    step: _Step,
    i: int,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    from_above: PyTree,
    kept: PyTree,
) -> ModuleStep:
    task, numbers = step.task, step.numbers
    held, trained = numbers.frames >= 0, numbers.origins >= 0
    per_example, top, part = held.ndim == 2, task.depth - 1, step.part

    def filled(tree: PyTree) -> PyTree:
        if not per_example:
            return tree
        return _with_stand_ins(held[i], numbers.complete[i], tree, step.axis)

    def loss_gradient(output: PyTree) -> PyTree:
        gradient = jax.grad(task.loss_fn)(output, filled(step.target))
        gradient = select(held[top], gradient) if per_example else gradient
        return gradient if part is None else select(part.has_top, gradient, from_above)

    if per_example and (i < top or part is not None):
        from_above = select(trained[i], from_above)
    pseudo_gradient = loss_gradient if i == top else from_above
    # All examples of a step are of one frame, or bubbles.
    number = i if part is None else part.first + i
    keys = (
        module_key(step.rng, number, numbers.frames[i].max()),
        module_key(step.rng, number, numbers.origins[i].max()),
    )
    module, x = task.network.modules[i], filled(x)
    if isinstance(kept, (Fifo, Past)):
        passes = fifo.passes_of(
            module, params, state, x, keys[0], train=task.train, recompute=step.recompute,
            stash_weights=fifo.stashes_weights(kept),
        )  # fmt: skip
        done = fifo.module_step(passes, params, state, x, pseudo_gradient, kept, keys, trained[i])
        one = ModuleStep(*done)
    else:
        one = module_step(
            module, params, state, x, pseudo_gradient, train=task.train, rng=keys[0]
        )  # fmt: skip
    return one._replace(
        state=select(numbers.complete[i], one.state, state),
        grads=select(numbers.any_trained[i], one.grads),
    )


def _with_stand_ins(mask: jax.Array, complete: jax.Array, tree: PyTree, axis: str | None) -> PyTree:
    """Batches `[B, ...]` in which the examples of a mask stand in, in turn, for all others.

    The examples of a batch add up in one gradient. With a stand-in and a cotangent of zero a bubble
    adds nothing, whatever a module computes at zero or at what another stream has left. What is
    left: a module that mixes the examples of a batch, as batch normalisation does, sees the
    stand-ins; and an example that still waits for its first pseudo-gradient has a cotangent of
    zero, which gives NaN if the module's derivative at that very input is infinite.

    Args:
      mask: bool `[B]`.
      complete: bool, whether it holds for all examples, on all replicas.
      tree: `[B, ...]`.
      axis: over which the batch is split: the examples of all replicas stand in.
    """
    batch = mask.shape[0]
    if axis is None:
        return jax.tree.map(partial(_filled, mask), tree) if batch > 1 else tree

    def of_all_replicas() -> PyTree:
        everywhere = jax.lax.all_gather(mask, axis, tiled=True)
        first = jax.lax.axis_index(axis) * batch

        def one(x: jax.Array) -> jax.Array:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return x
            whole = _filled(everywhere, jax.lax.all_gather(x, axis, tiled=True))
            return jax.lax.dynamic_slice_in_dim(whole, first, batch)

        return jax.tree.map(one, tree)

    # A collective in a branch: replicas of a device run the same one, with the same `complete`.
    return jax.lax.cond(complete, lambda: tree, of_all_replicas)


def _filled(mask: jax.Array, x: jax.Array) -> jax.Array:
    numbers = jnp.arange(mask.shape[0])
    standing_in = jnp.argsort(~mask, stable=True)[numbers % jnp.maximum(mask.sum(), 1)]
    return jnp.asarray(x)[jnp.where(mask, numbers, standing_in)]


def forward_group(
    network: Network,
    group: tuple[int, ...],
    params: tuple,
    state: tuple,
    inputs: tuple,
    frames: jax.Array,
) -> tuple:
    """One step of neighbouring modules that only infer (`train=False`): the output of each.

    Args:
      network, group, params, state, inputs: as in `run_group`.
      frames: int32 `[D, B]`, the frame that every module works on, -1 for a bubble, which is all
        zeros for it.
    """
    return tuple(
        network.modules[i].apply(
            params[j], state[j], select(frames[i] >= 0, inputs[j]), train=False, rng=None
        )[0]
        for j, i in enumerate(group)
    )


def show(task: Task, output: PyTree, target: PyTree, numbers: Numbers) -> tuple[PyTree, jax.Array]:
    """The output of the top module, and its loss: a scalar, or `[B]`; zero for a bubble."""
    valid = numbers.frames[-1] >= 0
    if valid.ndim:
        loss = each_example(task.loss_fn, output, target)
    else:
        loss = task.loss_fn(output, target)
    return select(valid, output), select(valid, loss)


class ComputationStep(NamedTuple):
    """What all modules together give at one computation step."""

    in_flight: InFlight  # the signals for the next step
    state: tuple  # of every module, unchanged where the module held a bubble
    grads: tuple  # pseudo-gradients of every module's parameters; zero where not `trained`
    trained: jax.Array  # bool[D], gamma_i^t: which modules had a valid pseudo-gradient
    output: PyTree  # h_D [B, ...]; zero where not `valid`
    valid: jax.Array  # bool[], whether the output comes from a frame
    loss: jax.Array  # scalar; zero where not `valid`
    frames: jax.Array  # int32[D], the frame that each module worked on, -1 for none
    origins: jax.Array  # int32[D], the frame whose loss its pseudo-gradient came from, or -1
    fifos: tuple  # of every module, with pipelined backprop; else ()
    # With frame numbers `per_example`: `trained`, `valid`, `frames` and `origins` end in an axis B;
    # the loss is the mean over valid examples; gradients are 1/B times the sum over trained ones.


def computation_step(
    network: Network,
    loss_fn: LossFn,
    params: tuple,
    state: tuple,
    in_flight: InFlight,
    frame: PyTree,
    target: PyTree,
    frame_id: jax.Array | int,
    *,
    train: bool = True,
    rng: jax.Array | None = None,
    fifos: tuple = (),
    recompute: bool = True,
) -> ComputationStep:
    """One tick of every module: `run_group` for the group of all of them (Eq. 3 and 4).

    Args:
      network: D modules.
      loss_fn: `loss_fn(output, target) -> scalar`, the mean over the batch.
      params, state: tuples of D pytrees.
      in_flight: what the step before sent, or `init_in_flight`.
      frame: the frame `x^t` that enters, `[B, ...]`.
      target: the target `y^t`. It is paired with the output of this step, which comes from frame
        t-D+1; or, if `in_flight` carries targets, it travels up with its own frame.
      frame_id: the number t of the frame, from 0; -1 to let the pipeline run empty; `[B]` if
        `in_flight` has a number for every example, all the same where they are not -1.
      train, rng: passed on; module i draws from `fold_in(fold_in(rng, i), number of its frame)`.
      fifos: none for Sideways; for pipelined backprop those of the step before, or `empty_fifos`.
      recompute: as in `empty_fifos`.
    """
    task, group = Task(network, loss_fn, train=train), tuple(range(network.depth))
    targets = (target, *in_flight.targets)
    moved, numbers = tick(
        network.wiring, in_flight, jnp.asarray(frame_id, jnp.int32), keeps_inputs=bool(fifos)
    )
    inputs = network.inputs(frame, in_flight.activations)
    incoming = (*in_flight.pseudo_gradients, None)
    steps = run_group(
        task, group, params, state, inputs, incoming, targets[-1], numbers, rng,
        fifos=fifos or None, recompute=recompute,
    )  # fmt: skip
    sent_down = {i: steps[i].pseudo_gradient for i in group}
    output, loss = show(task, steps[-1].output, targets[-1], numbers)
    valid = numbers.frames[-1] >= 0
    return ComputationStep(
        in_flight=moved._replace(
            activations=tuple(one.output for one in steps[:-1]),
            pseudo_gradients=tuple(returned(network.wiring, i, sent_down) for i in group[:-1]),
            targets=targets[:-1],
        ),
        state=tuple(one.state for one in steps),
        grads=tuple(one.grads for one in steps),
        trained=numbers.origins >= 0,
        output=output,
        valid=valid,
        loss=masked_mean(loss, valid) if valid.ndim else loss,
        frames=numbers.frames,
        origins=numbers.origins,
        fifos=tuple(one.fifo for one in steps) if fifos else (),
    )


def empty_fifos(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    train: bool = True,
    rng: jax.Array | None = None,
    recompute: bool = True,
    stash_weights: bool = False,
) -> tuple:
    """What the modules keep in pipelined backprop, before the first step.

    Args:
      network: D modules.
      params, state: tuples of D pytrees, or their shapes.
      frame: a batch of frames `[B, ...]`, or its shape.
      train, rng: as for `computation_step`.
      recompute: keep inputs and states, and run forward passes again; otherwise keep residuals.
      stash_weights: keep the weights of every forward pass for its backward pass, too; otherwise
        both use those of now.
    """
    inputs = network.inputs(shape_of(frame), network.activation_shapes(params, state, frame))
    found = []
    for i, module in enumerate(network.modules):
        one = fifo.passes_of(
            module, params[i], state[i], inputs[i], rng,
            train=train, recompute=recompute, stash_weights=stash_weights,
        )  # fmt: skip
        found.append(fifo.empty_fifo(network.wiring, i, one, inputs[i]))
    return tuple(found)
