"""Who hears whom: the inputs of every module, and whose cotangents come back to it.

Module i (0-based) hears module i-1, and module 0 hears the frame. A signal takes one computation
step from its sender to its receiver, so that what module i hears from module j at step t is what j
sent at step t-1. The cotangent of a module's output comes from the module that hears it.
"""

from __future__ import annotations

from sideways_jax.tools.trees import PyTree

FRAME = -1  # the source of module 0


def source(i: int) -> int:
    """The module that module i hears; `FRAME` for the lowest."""
    return i - 1


def heard(group: tuple[int, ...], from_outside: PyTree, sent: tuple) -> tuple:
    """The input of every module of a group of neighbours.

    Args:
      group: numbers of consecutive modules.
      from_outside: what the source of the lowest of them sent, or the frame.
      sent: what all of them but the last sent at the step before.
    """
    inputs = {source(group[0]): from_outside} | dict(zip(group, sent, strict=False))
    return tuple(inputs[source(i)] for i in group)


def returned(group: tuple[int, ...], from_outside: PyTree, sent: tuple) -> tuple:
    """The cotangent that has come back for the output of every module of a group.

    Args:
      group: numbers of consecutive modules.
      from_outside: what the receiver of the highest of them sent; anything for the top module,
        which makes its own from the loss.
      sent: what all of them but the lowest sent down at the step before.
    """
    by_source = {source(i): x for i, x in zip(group[1:], sent, strict=True)}
    return tuple((by_source | {group[-1]: from_outside})[i] for i in group)
