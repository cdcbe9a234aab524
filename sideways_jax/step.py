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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sideways_jax import backprop, depth_sharded, sharded_training, time_parallel
from sideways_jax.episode import (
    Episode,
    LossFn,
    align_targets,
    check_devices,
    check_episode,
    check_names,
)
from sideways_jax.hold_back import hold_back
from sideways_jax.module_step import ModuleStep, module_step
from sideways_jax.network import Network, module_key
from sideways_jax.train_state import TrainState
from sideways_jax.trees import PyTree, average, first_of, masked_mean, select, shape_of, zeros

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
]


class InFlight(NamedTuple):
    """The signals between modules, and where they come from; D-1 of each kind.

    A frame number of -1 says that the signal is a bubble, whatever its value.
    """

    activations: tuple  # [i]: h_i [B, ...], from module i, for module i+1
    pseudo_gradients: tuple  # [i]: cotangent of h_i [B, ...], from module i+1, for module i
    activation_frames: jax.Array  # int32[D-1], the frame that each activation comes from
    pseudo_gradient_frames: jax.Array  # int32[D-1], the frame whose loss it comes from
    targets: tuple  # target="origin": [i] the target of the frame of activations[i]; else ()


def init_in_flight(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    target: PyTree = None,
    *,
    target_alignment: str = "stream",
) -> InFlight:
    """The empty pipeline: zeros ("restart", section 3.4), all marked as bubbles.

    Args:
      network, params, state: as everywhere.
      frame: a batch of frames `[B, ...]`, or its shape.
      target: a batch of targets, or its shape; used for `target_alignment="origin"` alone.
      target_alignment: "stream" or "origin", see `episode_gradients`.

    Raises:
      ValueError: if a module does not fit the one below it.
    """
    shapes = network.activation_shapes(params, state, frame)[:-1]
    bubbles = jnp.full((network.depth - 1,), -1, jnp.int32)
    target_shapes = (shape_of(target),) * len(shapes) if target_alignment == "origin" else ()
    return InFlight(
        activations=zeros(shapes),
        pseudo_gradients=zeros(shapes),
        activation_frames=bubbles,
        pseudo_gradient_frames=bubbles,
        targets=zeros(target_shapes),
    )


class ComputationStep(NamedTuple):
    """What all modules together give at one computation step."""

    in_flight: InFlight  # the signals for the next step
    state: tuple  # of every module, unchanged where the module held a bubble
    grads: tuple  # pseudo-gradients of every module's parameters; zero where not `trained`
    trained: jax.Array  # bool[D], gamma_i^t: which modules had a valid pseudo-gradient
    output: PyTree  # h_D [B, ...]; zero where not `valid`
    valid: jax.Array  # bool, whether the output comes from a frame
    loss: jax.Array  # scalar; zero where not `valid`
    frames: jax.Array  # int32[D], the frame that each module worked on, -1 for none
    origins: jax.Array  # int32[D], the frame whose loss its pseudo-gradient came from, or -1


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

    Args:
      network, loss_fn, params, state: as in `episode_gradients`.
      in_flight: what the step before sent, or `init_in_flight`.
      frame: the frame `x^t` that enters, `[B, ...]`.
      target: the target `y^t`. It is paired with the output of this step, which comes from frame
        t-D+1; or, if `in_flight` carries targets, it travels up with its own frame.
      frame_id: the number t of the frame, from 0; -1 to let the pipeline run empty.
      train, rng: passed on; module i draws from `fold_in(fold_in(rng, i), number of its frame)`.
    """
    top = network.depth - 1
    inputs = (frame, *in_flight.activations)
    targets = (target, *in_flight.targets)
    frames = _prepend(frame_id, in_flight.activation_frames)
    # The top module's gradient is the exact one of the activation that it just computed.
    origins = jnp.append(in_flight.pseudo_gradient_frames, frames[top])
    trained = (frames >= 0) & (origins >= 0)

    def loss_gradient(output):
        return jax.grad(loss_fn)(output, targets[-1])

    steps = [
        module_step(
            module,
            params[i],
            state[i],
            inputs[i],
            in_flight.pseudo_gradients[i] if i < top else loss_gradient,
            train=train,
            rng=module_key(rng, i, frames[i]),
        )
        for i, module in enumerate(network.modules)
    ]
    output = steps[top].output
    valid = frames[top] >= 0
    return ComputationStep(
        in_flight=InFlight(
            activations=tuple(one.output for one in steps[:top]),
            pseudo_gradients=tuple(one.pseudo_gradient for one in steps[1:]),
            activation_frames=frames[:top],
            pseudo_gradient_frames=jnp.where(trained, origins, -1)[1:],
            targets=targets[:-1],
        ),
        state=tuple(select(frames[i] >= 0, one.state, state[i]) for i, one in enumerate(steps)),
        grads=tuple(select(trained[i], one.grads) for i, one in enumerate(steps)),
        trained=trained,
        output=select(valid, output),
        valid=valid,
        loss=select(valid, loss_fn(output, targets[-1])),
        frames=frames,
        origins=jnp.where(trained, origins, -1),
    )


def _prepend(frame_id, activation_frames: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.asarray(frame_id, jnp.int32)[None], activation_frames])


def _scan_steps(
    network, loss_fn, params, state, in_flight, frames, targets, first_frame_id, *, train, rng
):
    """Repeats `computation_step` over frames `[K, B, ...]` while the weights stay as they are.

    Returns the pipeline and the state after the last step, the sums over steps of the gradients
    and of gamma_i^t, and by computation step `(output, target paired with it, loss, valid)`.
    """

    def body(carry, inputs):
        in_flight, state, grads, num_grads = carry
        frame, target, frame_id = inputs
        one = computation_step(
            network,
            loss_fn,
            params,
            state,
            in_flight,
            frame,
            target,
            frame_id,
            train=train,
            rng=rng,
        )
        grads = jax.tree.map(jnp.add, grads, one.grads)
        num_grads += one.trained.astype(jnp.int32)
        paired = (target, *in_flight.targets)[-1]
        carry = one.in_flight, one.state, grads, num_grads
        return carry, (one.output, paired, one.loss, one.valid)

    num_frames = jax.tree.leaves(frames)[0].shape[0]
    frame_ids = first_frame_id + jnp.arange(num_frames, dtype=jnp.int32)
    no_grads = jnp.zeros((network.depth,), jnp.int32)
    start = (in_flight, jax.tree.map(jnp.asarray, state), zeros(params), no_grads)
    return jax.lax.scan(body, start, (frames, targets, frame_ids))


def _mean_grads(sums: tuple, num_grads: jax.Array) -> tuple:
    """`1/gamma_i * sum_t`: Eq. 5 with the mask; zero where gamma_i is."""
    return tuple(average(module_sums, num_grads[i]) for i, module_sums in enumerate(sums))


def _sideways_scan(network, loss_fn, params, state, frames, targets, *, target, train, rng):
    """An episode of Sideways, one computation step after the other: the reference execution."""
    in_flight = init_in_flight(
        network, params, state, first_of(frames), first_of(targets), target_alignment=target
    )
    (_, state, sums, num_grads), (outputs, _, losses, valid) = _scan_steps(
        network, loss_fn, params, state, in_flight, frames, targets, 0, train=train, rng=rng
    )
    loss = masked_mean(losses, valid)
    return Episode(_mean_grads(sums, num_grads), num_grads, loss, outputs, valid, state)


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
        rule "sideways" and execution "scan", since weights change between steps. A module
        without a valid gradient among the n steps is not updated.
      metrics_fn: `metrics_fn(output, target) -> {name: scalar}`, averaged over valid outputs.

    Returns:
      `(init, train_step)`.
      `init(key, frame, target=None) -> TrainState`, from a batch of frames `[B, ...]` or its
      shape; `target` likewise, needed by `update_every` together with `target="origin"`.
      `train_step(train_state, frames, targets) -> (train_state, metrics)` takes `[K, B, ...]`;
      the metrics are "loss", "grad_norm" (the global norm of the averaged gradients, before `tx`)
      and those of `metrics_fn`. Neither is jitted; both can be, with `donate_argnums=0`.

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
        if rule != "sideways" or execution != "scan":
            raise ValueError(
                f"update_every={update_every} changes the weights between computation steps; that "
                f"needs rule='sideways' and execution='scan', not {rule!r} and {execution!r}"
            )
        if update_every < 1:
            raise ValueError(f"update_every={update_every}: give None or a number of at least 1")
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
    online = update_every is not None

    def init(key, frame, target_like=None):
        params_key, rng = jax.random.split(key)
        params, state = network.init(params_key, frame)
        if online and target == "origin" and target_like is None:
            raise ValueError(
                "update_every with target='origin' carries targets along with the pipeline: call "
                "init(key, frame, target) with a batch of targets or its shape"
            )
        in_flight = ()
        if online:
            in_flight = init_in_flight(
                network, params, state, frame, target_like, target_alignment=target
            )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            state=state,
            opt_state=tx.init(params),
            in_flight=in_flight,
            rng=rng,
        )

    def updated(train_state, grads, num_grads, state, in_flight):
        updates, opt_state = tx.update(grads, train_state.opt_state, train_state.params)
        if online:  # Within an episode every gamma_i is at least 1: there is nothing to hold back.
            trained = num_grads > 0
            updates = tuple(select(trained[i], update) for i, update in enumerate(updates))
            opt_state = hold_back(tx, trained, opt_state, train_state.opt_state, train_state.params)
        return TrainState(
            step=train_state.step + 1,
            params=optax.apply_updates(train_state.params, updates),
            state=state,
            opt_state=opt_state,
            in_flight=in_flight,
            rng=train_state.rng,
        )

    def extra_metrics(outputs, targets, valid):
        if metrics_fn is None:
            return {}
        by_step = jax.vmap(metrics_fn)(outputs, targets)
        return {name: masked_mean(values, valid) for name, values in by_step.items()}

    def episode_step(train_state, frames, targets):
        episode = episode_gradients(
            network,
            loss_fn,
            train_state.params,
            train_state.state,
            frames,
            targets,
            rule=rule,
            execution=execution,
            target=target,
            rng=jax.random.fold_in(train_state.rng, train_state.step),
        )
        aligned = targets
        if rule == "sideways":
            aligned = align_targets(targets, network.depth, target)
        metrics = {"loss": episode.loss, "grad_norm": optax.tree.norm(episode.grads)}
        metrics |= extra_metrics(episode.outputs, aligned, episode.valid)
        return updated(train_state, episode.grads, episode.num_grads, episode.state, ()), metrics

    def online_step(train_state, frames, targets):
        check_episode(network, frames, targets, rule="online")
        num_frames = jax.tree.leaves(frames)[0].shape[0]
        if num_frames % update_every:
            raise ValueError(
                f"{num_frames} frames do not divide into updates of update_every={update_every} "
                f"steps: give a multiple of {update_every} frames"
            )

        def one_update(train_state, inputs):
            in_flight, params = train_state.in_flight, train_state.params
            (in_flight, state, sums, num_grads), by_step = _scan_steps(
                network,
                loss_fn,
                params,
                train_state.state,
                in_flight,
                *inputs,
                train_state.step * update_every,
                train=True,
                rng=train_state.rng,
            )
            grads = _mean_grads(sums, num_grads)
            new = updated(train_state, grads, num_grads, state, in_flight)
            return new, (by_step, optax.tree.norm(grads))

        def split(x):
            return x.reshape((-1, update_every, *x.shape[1:]))

        train_state, (by_step, grad_norms) = jax.lax.scan(
            one_update, train_state, jax.tree.map(split, (frames, targets))
        )
        outputs, paired, losses, valid = jax.tree.map(
            lambda x: x.reshape((num_frames, *x.shape[2:])), by_step
        )
        metrics = {"loss": masked_mean(losses, valid), "grad_norm": jnp.mean(grad_norms)}
        return train_state, metrics | extra_metrics(outputs, paired, valid)

    return init, online_step if online else episode_step
