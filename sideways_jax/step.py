"""The rule: what every module does at a computation step, and training with it.

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

`computation_step` does not use these formulas. It sends the number of the frame along with every
signal, -1 for "nothing there yet", and what is valid follows; the formulas are what tests assert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sideways_jax import (
    backprop,
    depth_sharded,
    online,
    sharded_online,
    sharded_training,
    time_parallel,
    training,
)
from sideways_jax.episode import (
    Episode,
    LossFn,
    check_devices,
    check_episode,
    check_names,
)
from sideways_jax.in_flight import InFlight, init_in_flight, restart, tick
from sideways_jax.module_step import ModuleStep, module_step
from sideways_jax.network import Network, module_key
from sideways_jax.train_state import TrainState
from sideways_jax.trees import (
    PyTree,
    average,
    each_example,
    first_of,
    masked_mean,
    select,
    zeros,
)

__all__ = [
    "ComputationStep",
    "Episode",
    "InFlight",
    "ModuleStep",
    "TrainState",
    "computation_step",
    "episode_gradients",
    "init_in_flight",
    "make_train_step",
    "module_step",
    "restart",
]


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
) -> ComputationStep:
    """One tick of every module: the whole of the Sideways rule (section 3.4, Eq. 3 and 4).

    All modules read `in_flight` as the step before left it, so their order does not matter, and
    all use the parameters of now: nothing is stashed. A module that holds a bubble computes like
    the others, but nothing of it is used: what it sends is again marked as a bubble, and state and
    gradients are selected, not multiplied, so that not even a NaN gets through.

    With frame numbers for every example, an example that is a bubble is all zeros for the module,
    the cotangent too, so that it adds nothing to a gradient; and the state of a module only moves
    when none of the batch is a bubble. What is left: a module that mixes the examples of a batch,
    as batch normalisation does, sees those zeros.

    Args:
      network, loss_fn, params, state: as in `episode_gradients`.
      in_flight: what the step before sent, or `init_in_flight`.
      frame: the frame `x^t` that enters, `[B, ...]`.
      target: the target `y^t`. It is paired with the output of this step, which comes from frame
        t-D+1; or, if `in_flight` carries targets, it travels up with its own frame.
      frame_id: the number t of the frame, from 0; -1 to let the pipeline run empty; `[B]` if
        `in_flight` has a number for every example.
      train, rng: passed on; module i draws from `fold_in(fold_in(rng, i), number of its frame)`.
    """
    top = network.depth - 1
    inputs = (frame, *in_flight.activations)
    targets = (target, *in_flight.targets)
    moved, frames, origins = tick(in_flight, jnp.asarray(frame_id, jnp.int32))
    held, trained = frames >= 0, origins >= 0
    per_example = frames.ndim == 2

    def zero_bubbles(mask, tree):
        # Examples of a batch add up in a gradient: there is nothing to select afterwards.
        return select(mask, tree) if per_example else tree

    def loss_gradient(output):
        return zero_bubbles(held[top], jax.grad(loss_fn)(output, targets[-1]))

    steps = [
        module_step(
            module,
            params[i],
            state[i],
            zero_bubbles(held[i], inputs[i]),
            zero_bubbles(trained[i], in_flight.pseudo_gradients[i]) if i < top else loss_gradient,
            train=train,
            rng=module_key(rng, i, frames[i].max()),  # Examples are of one frame, or bubbles.
        )
        for i, module in enumerate(network.modules)
    ]
    output, valid = steps[top].output, held[top]
    if per_example:
        loss = masked_mean(each_example(loss_fn, output, targets[-1]), valid)
    else:
        loss = select(valid, loss_fn(output, targets[-1]))
    return ComputationStep(
        in_flight=moved._replace(
            activations=tuple(one.output for one in steps[:top]),
            pseudo_gradients=tuple(one.pseudo_gradient for one in steps[1:]),
            targets=targets[:-1],
        ),
        state=tuple(select(held[i].all(), one.state, state[i]) for i, one in enumerate(steps)),
        grads=tuple(select(trained[i].any(), one.grads) for i, one in enumerate(steps)),
        trained=trained,
        output=select(valid, output),
        valid=valid,
        loss=loss,
        frames=frames,
        origins=origins,
    )


class _Steps(NamedTuple):
    """What several computation steps give, while the weights stay as they are."""

    in_flight: InFlight  # after the last
    state: tuple
    sums: tuple  # of the gradients
    num_grads: jax.Array  # int32[D], over how many (examples of) steps
    outputs: PyTree  # [K, B, ...]
    targets: PyTree  # [K, B, ...], paired with the outputs
    losses: jax.Array  # [K]
    frames: jax.Array  # int32 [K] or [K, B], which frame the output is of, -1 for none


def _scan_steps(
    network, loss_fn, params, state, in_flight, frames, targets, first_frame_id, reset=None, *,
    train, rng,
):  # fmt: skip
    """Repeats `computation_step` over frames `[K, B, ...]`, the pipeline restarting at `reset`."""

    def body(carry, inputs):
        in_flight, state, grads, num_grads = carry
        frame, target, frame_id, reset = inputs
        if reset is not None:
            in_flight = restart(in_flight, reset)
            frame_id = jnp.full(reset.shape, frame_id)
        paired = (target, *in_flight.targets)[-1]
        one = computation_step(
            network, loss_fn, params, state, in_flight, frame, target, frame_id,
            train=train, rng=rng,
        )  # fmt: skip
        grads = jax.tree.map(jnp.add, grads, one.grads)
        num_grads += one.trained.reshape(network.depth, -1).sum(-1, dtype=jnp.int32)
        carry = one.in_flight, one.state, grads, num_grads
        return carry, (one.output, paired, one.loss, one.frames[-1])

    num_frames = jax.tree.leaves(frames)[0].shape[0]
    frame_ids = first_frame_id + jnp.arange(num_frames, dtype=jnp.int32)
    no_grads = jnp.zeros((network.depth,), jnp.int32)
    start = (in_flight, jax.tree.map(jnp.asarray, state), zeros(params), no_grads)
    last, by_step = jax.lax.scan(body, start, (frames, targets, frame_ids, reset))
    return _Steps(*last, *by_step)


def _sideways_scan(network, loss_fn, params, state, frames, targets, *, target, train, rng):
    """An episode of Sideways, one computation step after the other: the reference execution."""
    in_flight = init_in_flight(
        network, params, state, first_of(frames), first_of(targets), target_alignment=target
    )
    steps = _scan_steps(
        network, loss_fn, params, state, in_flight, frames, targets, 0, train=train, rng=rng
    )
    return Episode(
        # 1/gamma_i * sum_t: Eq. 5 with the mask.
        grads=tuple(map(average, steps.sums, steps.num_grads)),
        num_grads=steps.num_grads,
        loss=masked_mean(steps.losses, steps.frames >= 0),
        outputs=steps.outputs,
        valid=steps.frames >= 0,
        state=steps.state,
    )


_EPISODES = {
    ("sideways", "scan"): _sideways_scan,
    ("sideways", "time_parallel"): time_parallel.sideways_episode,
    ("backprop", "scan"): backprop.scan_episode,
    ("backprop", "time_parallel"): time_parallel.backprop_episode,
}


def episode_gradients(
    network: Network,
    loss_fn: LossFn,
    params: tuple,
    state: tuple,
    frames: PyTree,
    targets: PyTree,
    *,
    rule: str = "sideways",
    execution: str = "scan",
    mesh: Any = None,
    schedule: str | None = None,
    target: str = "stream",
    train: bool = True,
    rng: jax.Array | None = None,
    groups: Sequence[int] | None = None,
    recompute: bool = True,
) -> Episode:
    """(Pseudo-)gradients of one episode: K frames through a pipeline that starts empty.

    Sideways: `1/gamma_i * sum_t gamma_i^t * pseudo-gradient_i^t`, Eq. 3 to 5 with the mask of
    section 3.4. Backprop: `1/K * sum_t gradient_i^t`, Eq. 1 and 2.

    Args:
      network: D modules.
      loss_fn: `loss_fn(output, target) -> scalar`, the mean over the batch.
      params, state: tuples of D pytrees, as `Network.init` gives them.
      frames: `[K, B, ...]`.
      targets: `[K, B, ...]`.
      rule: "sideways" or "backprop".
      execution: "scan", one computation step (or frame) after the other with memory that does not
        depend on K; or "time_parallel", module after module with all frames at once, which is
        faster. The answers agree to rounding.
      mesh, schedule: for executions on several devices; have to be None here.
      target: which target an output is paired with. "stream": that of the frame which enters at
        the same step, `y^t`, as in the paper; the output itself comes from frame t-D+1. "origin":
        that of the output's own frame. With "backprop" nothing is late and both are the same.
      train: passed on to the modules.
      rng: the key of the episode, needed by dropout; None otherwise.

    Returns:
      An `Episode`.

    Raises:
      ValueError: for unknown names, frames and targets of different K, modules that do not fit,
        and with "sideways" for an episode of fewer than 2D-1 frames, which would never train the
        lowest module.
    """
    check_names(rule, execution, target)
    check_devices(rule, execution, mesh, schedule)
    check_episode(network, frames, targets, rule)
    network.activation_shapes(params, state, first_of(frames))  # Does every module fit?
    if execution == "depth_sharded":
        return depth_sharded.episode(
            network,
            loss_fn,
            params,
            state,
            frames,
            targets,
            rule=rule,
            schedule=schedule,
            mesh=mesh,
            groups=groups,
            recompute=recompute,
            target=target,
            train=train,
            rng=rng,
        )
    return _EPISODES[rule, execution](
        network, loss_fn, params, state, frames, targets, target=target, train=train, rng=rng
    )


def make_train_step(
    network: Network,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    rule: str = "sideways",
    execution: str = "scan",
    mesh: Any = None,
    schedule: str | None = None,
    update_every: int | None = None,
    target: str = "stream",
    metrics_fn: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None,
    with_outputs: bool = False,
    groups: Sequence[int] | None = None,
    recompute: bool = True,
) -> tuple[Callable[..., TrainState], Callable[..., tuple[TrainState, dict[str, jax.Array]]]]:
    """Training as a pair of pure functions, as optax gives `init` and `update`.

    Args:
      network, loss_fn, rule, execution, mesh, schedule, target: as in `episode_gradients`.
      tx: any optax transformation; it sees the whole tuple of parameters.
      update_every: None for one update per episode, each from an empty pipeline. A number n for
        one update every n computation steps with the pipeline carried on, over the calls of
        `train_step` too: n = 1 is online learning, the auto-encoding of section 4.1. Only with
        rule "sideways", and execution "scan" or "depth_sharded", since weights change between
        steps. A module without a valid gradient among the n steps is not updated. See
        `online.make_train_step` and `sharded_online.make_train_step`.
      metrics_fn: `metrics_fn(output, target) -> {name: scalar}`, averaged over valid outputs.
      with_outputs: with `update_every` only: `train_step` gives `(train_state, metrics,
        online.Outputs)`, what the network shows at every step.

    Returns:
      `(init, train_step)`.
      `init(key, frame, target=None) -> TrainState`, from a batch of frames `[B, ...]` or its
      shape; `target` likewise, needed by `update_every` together with `target="origin"`.
      `train_step(train_state, frames, targets) -> (train_state, metrics)` takes `[K, B, ...]`;
      the metrics are "loss", "grad_norm" (the global norm of the averaged gradients, before `tx`)
      and those of `metrics_fn`. With `update_every` it takes `reset`, bool `[K, B]`, as well:
      where the frame of an example is the first of another stream; by default nowhere.
      Neither is jitted; both can be, with `donate_argnums=0`.

    Raises:
      ValueError: for unknown names, impossible combinations, and as `episode_gradients` does.

    >>> from sideways_jax import Module
    >>> linear = Module(lambda key, x: (jnp.ones(()), ()),
    ...                 lambda params, state, x, *, train, rng: (params * x, state))
    >>> def squared_error(output, target):
    ...     return jnp.mean((output - target) ** 2)
    >>> init, train_step = make_train_step(Network([linear] * 2), squared_error, optax.sgd(0.1))
    >>> clip = jnp.ones((4, 1, 1))  # K = 4 frames, batch 1
    >>> train_state, metrics = train_step(init(jax.random.key(0), clip[0]), clip, 2 * clip)
    >>> float(metrics["loss"]), train_state.params
    (1.0, (Array(1.2, dtype=float32), Array(1.2, dtype=float32)))
    """
    check_names(rule, execution, target)
    check_devices(rule, execution, mesh, schedule)
    if update_every is not None:
        if rule != "sideways" or execution == "time_parallel":
            raise ValueError(
                f"update_every={update_every} changes the weights between computation steps; that "
                "needs rule='sideways' and execution='scan' or 'depth_sharded', not "
                f"{rule!r} and {execution!r}"
            )
        if update_every < 1:
            raise ValueError(f"update_every={update_every}: give None or a number of at least 1")
    elif with_outputs:
        raise ValueError("with_outputs=True is for streams: set update_every")
    if execution == "depth_sharded" and update_every is not None:
        return sharded_online.make_train_step(
            network,
            loss_fn,
            tx,
            mesh=mesh,
            groups=groups,
            update_every=update_every,
            target=target,
            metrics_fn=metrics_fn,
            with_outputs=with_outputs,
        )
    if execution == "depth_sharded":
        return sharded_training.make_train_step(
            network,
            loss_fn,
            tx,
            rule=rule,
            schedule=schedule,
            mesh=mesh,
            groups=groups,
            recompute=recompute,
            target=target,
            metrics_fn=metrics_fn,
        )
    if update_every is None:
        gradients = partial(
            episode_gradients, network, loss_fn, rule=rule, execution=execution, target=target
        )
        return training.per_episode(network, tx, gradients, rule, target, metrics_fn)
    return online.make_train_step(
        network,
        tx,
        init_in_flight=partial(init_in_flight, network, target_alignment=target, per_example=True),
        steps=partial(_scan_steps, network, loss_fn),
        update_every=update_every,
        target=target,
        metrics_fn=metrics_fn,
        with_outputs=with_outputs,
    )
