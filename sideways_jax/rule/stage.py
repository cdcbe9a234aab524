"""A stage: neighbouring modules on one device, as one function of a frame, with exact backprop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sideways_jax.network.wiring import FRAME
from sideways_jax.rule.kept import Passes, passes
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree


class Context(NamedTuple):
    """What a stage has of a frame besides what stages below sent, and need not keep."""

    frame: PyTree
    frame_id: Any  # int32[], or its shape
    target: PyTree
    rng: Any  # the key of the run or its shape, or None


def make_stage(
    task: Task,
    group: Sequence[int],
    goes_up: Sequence[int],
    variables: tuple[tuple, tuple],
    arrives: Mapping[int, PyTree],
    context: Context,
    *,
    recompute: bool,
) -> Passes:
    """The two passes of a stage.

    The result of the forward pass is what goes up, by module, or the loss of the highest stage;
    beside it, it gives the output of the last module and the new states.

    Args:
      task: what is trained.
      group: the modules of the stage.
      goes_up: the modules whose outputs stages above need.
      variables: shapes of the parameters and states of the group.
      arrives: shapes of what stages below send, by module.
      context: shapes.
      recompute: as in `kept.passes`.
    """

    def run(
        params: tuple, state: tuple, arrived: dict, context: Context
    ) -> tuple[PyTree, tuple[PyTree, tuple]]:
        sent, new_state = task.network.apply_group(
            group, params, state, {FRAME: context.frame} | arrived,
            train=task.train, rng=context.rng, frame_id=context.frame_id,
        )  # fmt: skip
        output = sent[group[-1]]
        is_top = group[-1] == task.depth - 1
        result = task.loss_fn(output, context.target) if is_top else {j: sent[j] for j in goes_up}
        return result, (output, new_state)

    return passes(run, (*variables, dict(arrives), context), recompute=recompute)
