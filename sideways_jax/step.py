"""The door to training: gradients of an episode, and train steps, by rule and execution.

`rule/rule.py` defines the gradients. `execution` says where they are computed: a name of
`EXECUTIONS`, or a value such as `Pipeline(mesh)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from sideways_jax.device_programs.execution import ProgramPerDevice
from sideways_jax.devices.mesh import check_mesh
from sideways_jax.network.network import Network
from sideways_jax.one_device.execution import Scan, TimeParallel
from sideways_jax.pipeline.conversion import per_module
from sideways_jax.pipeline.execution import Pipeline
from sideways_jax.rule.episode import Episode, check_episode
from sideways_jax.rule.in_flight import InFlight, init_in_flight, restart
from sideways_jax.rule.rule import ComputationStep, ModuleStep, computation_step, module_step
from sideways_jax.rule.task import LossFn, MetricsFn, Task, check_task
from sideways_jax.tools.names import check_name
from sideways_jax.tools.trees import PyTree, first_of
from sideways_jax.training.execution import Execution
from sideways_jax.training.streams import Outputs
from sideways_jax.training.train_state import Training, TrainState

__all__ = [
    "EXECUTIONS",
    "ComputationStep",
    "Episode",
    "Execution",
    "InFlight",
    "ModuleStep",
    "Outputs",
    "Pipeline",
    "ProgramPerDevice",
    "Scan",
    "TimeParallel",
    "TrainState",
    "Training",
    "computation_step",
    "episode_gradients",
    "init_in_flight",
    "make_train_step",
    "module_step",
    "per_module",
    "restart",
]

EXECUTIONS: dict[str, Callable[..., Execution]] = {
    "scan": Scan,
    "time_parallel": TimeParallel,
    "depth_sharded": Pipeline,
    "program_per_device": ProgramPerDevice,
}
ON_MESHES = ("depth_sharded", "program_per_device")  # those that take mesh, schedule, groups


def episode_gradients(
    network: Network,
    loss_fn: LossFn,
    params: tuple,
    state: tuple,
    frames: PyTree,
    targets: PyTree,
    *,
    rule: str = "sideways",
    execution: str | Execution = "scan",
    mesh: Mesh | None = None,
    schedule: str | None = None,
    target: str = "stream",
    train: bool = True,
    rng: jax.Array | None = None,
    groups: Sequence[int] | None = None,
    recompute: bool | None = None,
) -> Episode:
    """(Pseudo-)gradients of one episode: K frames through a pipeline that starts empty.

    Sideways: `1/gamma_i * sum_t gamma_i^t * pseudo-gradient_i^t`, Eq. 3 to 5 with the mask of
    section 3.4. Backprop: `1/K * sum_t gradient_i^t`, Eq. 1 and 2. Sums are taken in float32 at
    least; gradients have the dtypes of the parameters.

    Args:
      network: D modules.
      loss_fn: `loss_fn(output, target) -> scalar`, the mean over the batch.
      params, state: tuples of D pytrees, as `Network.init` gives them.
      frames: `[K, B, ...]`.
      targets: `[K, B, ...]`.
      rule: "sideways", "pipelined_backprop" or "backprop"; docs/rules.md compares them.
      execution: where it is computed; the answers agree to rounding. "scan": one computation step
        (or frame) after the other, with memory that does not depend on K. "time_parallel": module
        after module with all frames at once, which is faster on accelerators. Both take a `mesh`,
        over whose axis "data" batches of clips are divided. "depth_sharded": modules on the devices
        of a mesh, in one program. "program_per_device": likewise, with a program for each, which is
        faster in one process; it cannot be jitted. Or a value: `Scan()`, `TimeParallel()`,
        `Pipeline(mesh, ...)`, `ProgramPerDevice(mesh, ...)`.
      mesh, schedule, groups, recompute: the arguments of `Pipeline` and `ProgramPerDevice`.
      target: which target an output is paired with. "stream": that of the frame which enters at
        the same step, `y^t`, as in the paper; the output itself comes from frame t-D+1. "origin":
        that of the output's own frame. With "backprop" nothing is late and both are the same.
      train: passed on to the modules.
      rng: the key of the episode, needed by dropout; None otherwise.

    Returns:
      An `Episode`.

    Raises:
      ValueError: for unknown names, options that the execution does not have, frames, targets or
        modules that do not fit one another, and in a pipeline (not "backprop") for an episode of
        fewer than 2D-1 frames, which would never train the lowest module.
    """
    task = check_task(Task(network, loss_fn, rule, target, train))
    execution = _execution(
        execution, mesh=mesh, schedule=schedule, groups=groups, recompute=recompute
    )
    check_episode(task, frames, targets)
    network.activation_shapes(params, state, first_of(frames), train=train, rng=rng)
    return execution.episode(task, params, state, frames, targets, rng)


def make_train_step(
    network: Network,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    rule: str = "sideways",
    execution: str | Execution = "scan",
    mesh: Mesh | None = None,
    schedule: str | None = None,
    update_every: int | None = None,
    target: str = "stream",
    metrics_fn: MetricsFn | None = None,
    with_outputs: bool = False,
    groups: Sequence[int] | None = None,
    recompute: bool | None = None,
) -> Training:
    """Training as a pair of pure functions, as optax gives `init` and `update`.

    Args:
      network: D modules.
      loss_fn: `loss_fn(output, target) -> scalar`, the mean over the batch.
      tx: any optax transformation; it sees the whole tuple of parameters.
      rule, execution, mesh, schedule, target, groups, recompute: as in `episode_gradients`.
      update_every: None for one update per episode, each from an empty pipeline. A number is for
        streams, with execution "scan", "depth_sharded" or "program_per_device", since weights
        change between steps.
        A pipeline makes an update every n computation steps; the pipeline goes on over updates and
        over calls of `train_step`. n = 1 is online learning, as in section 4.1. A module without a
        valid gradient in the n steps is not updated. Backprop (n = 1, "scan") blocks: it makes an
        update for one frame of 2D-1 and drops the others (Figure 3).
      metrics_fn: `metrics_fn(output, target) -> {name: scalar}`, averaged over valid outputs.
      with_outputs: whether `train_step` also returns `Outputs`, those of the network at every
        step; with `update_every` only.

    Returns:
      `Training(init, train_step)`.
      `init(key, frame, target=None) -> TrainState`, from a batch of frames `[B, ...]` or its
      shape; `target` likewise, for `update_every` together with `target="origin"`.
      `train_step(train_state, frames, targets) -> (train_state, metrics)` takes `[K, B, ...]`;
      the metrics are "loss", "grad_norm" (the global norm of the averaged gradients, before `tx`)
      and those of `metrics_fn`. With `update_every` it takes `reset`, bool `[K, B]`, as well:
      where the frame of an example is the first of another stream; by default nowhere.
      Both can be jitted, with `donate_argnums=0`; but not those of "program_per_device".

    Raises:
      ValueError: for unknown names, impossible combinations, and as `episode_gradients` does.

    >>> import jax.numpy as jnp
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
    task = check_task(Task(network, loss_fn, rule, target, metrics_fn=metrics_fn))
    execution = _execution(
        execution, mesh=mesh, schedule=schedule, groups=groups, recompute=recompute
    )
    if update_every is None:
        if with_outputs:
            raise ValueError("with_outputs=True is for streams: set update_every")
        return execution.training(task, tx)
    if not isinstance(update_every, int) or isinstance(update_every, bool) or update_every < 1:
        raise ValueError(f"update_every={update_every!r}: give None or a number of at least 1")
    return execution.stream_training(task, tx, update_every=update_every, with_outputs=with_outputs)


def _execution(execution: str | Execution, **options: Any) -> Execution:
    """The execution of this name, or the value itself.

    Raises:
      ValueError: for an unknown name, and for options that it does not have.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(execution, str) and (
        isinstance(execution, type) or not hasattr(execution, "stream_training")
    ):
        raise ValueError(
            f"execution={execution!r}: give a name, {', '.join(map(repr, EXECUTIONS))}, or a value "
            "such as Scan() or Pipeline(mesh)"
        )
    if isinstance(execution, str):
        check_name("execution", execution, EXECUTIONS)
        if execution in ON_MESHES:
            check_mesh(options["mesh"], execution)
            return EXECUTIONS[execution](**given)
        kind = f"execution={execution!r} runs on one device and"
        if "mesh" in given:
            kind = f"execution={execution!r} divides batches, not modules, and"
        execution = EXECUTIONS[execution](mesh=given.pop("mesh", None))
        hint = "leave it out, or set execution='depth_sharded'"
        if isinstance(execution, Scan) and set(given) == {"recompute"}:
            hint = "for rule='pipelined_backprop' set execution=Scan(recompute=...)"
    else:
        kind, hint = f"execution={execution!r}", "give it to the execution itself, if it has it"
    if given:
        name, value = next(iter(given.items()))
        raise ValueError(f"{name}={value!r}: {kind} takes no {name}; {hint}")
    return execution
