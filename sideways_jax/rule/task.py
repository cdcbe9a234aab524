"""What is trained: all that the answer depends on, and nothing of where it is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.network import Network
from sideways_jax.tools.names import check_name
from sideways_jax.tools.trees import PyTree

LossFn = Callable[[PyTree, PyTree], jax.Array]  # (output, target) -> scalar, mean over the batch
MetricsFn = Callable[[PyTree, PyTree], dict[str, jax.Array]]  # likewise, one scalar for each name

RULES = ("sideways", "pipelined_backprop", "backprop")
TARGETS = ("stream", "origin")


class Task(NamedTuple):
    """A network, and what it learns by. Two executions of one task give the same answer."""

    network: Network  # D modules
    loss_fn: LossFn
    rule: str = "sideways"  # or "pipelined_backprop", "backprop"
    target: str = "stream"  # which target an output is paired with; see `step.episode_gradients`
    train: bool = True  # passed on to the modules
    metrics_fn: MetricsFn | None = None  # averaged over valid outputs

    @property
    def is_pipelined(self) -> bool:
        """Whether modules work on different frames: then outputs are late."""
        return self.rule != "backprop"

    @property
    def remembers(self) -> bool:
        """Whether modules of the pipeline keep what a cotangent that comes back later needs."""
        return self.rule == "pipelined_backprop"

    @property
    def depth(self) -> int:
        """D, the number of modules."""
        return self.network.depth


def check_task(task: Task) -> Task:
    """The task itself.

    Raises:
      ValueError: with the closest valid name, for an unknown rule or target.
    """
    check_name("rule", task.rule, RULES)
    check_name("target", task.target, TARGETS)
    return task


def metrics_of(task: Task, output: PyTree, target: PyTree) -> dict[str, jax.Array]:
    """`task.metrics_fn` of one output.

    Raises:
      ValueError: unless it gives a scalar for every name, none of which is taken.
    """
    if task.metrics_fn is None:
        return {}
    metrics = task.metrics_fn(output, target)
    if not isinstance(metrics, dict):
        raise ValueError(f"metrics_fn gives {type(metrics).__name__}: give a dict of scalars")
    for name, value in metrics.items():
        if name in ("loss", "grad_norm"):
            raise ValueError(f"metrics_fn gives {name!r}, a name that is taken: use another")
        if jnp.shape(value):
            raise ValueError(
                f"metrics_fn gives {name!r} of the shape {jnp.shape(value)}: give a scalar, the "
                "mean over the batch"
            )
    return metrics
