"""Which executions are compiled, on how many of the chips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Case(NamedTuple):
    """An execution on some of the chips."""

    rule: str
    execution: str
    schedule: str | None = None  # of backprop on several devices
    depth: int = 1  # devices that share the modules
    data: int = 1  # replicas
    is_stream: bool = False  # batch 1, an update at every frame; otherwise clips

    @property
    def name(self) -> str:
        """In words.

        >>> Case("backprop", "depth_sharded", "1f1b", depth=4, data=2).name
        '1f1b depth_sharded 4x2'
        >>> Case("sideways", "scan", is_stream=True).name
        'stream sideways scan 1x1'
        """
        stream = "stream " if self.is_stream else ""
        return f"{stream}{self.schedule or self.rule} {self.execution} {self.depth}x{self.data}"


def cases(depths: Sequence[int], chips: int) -> list[Case]:
    """The executions, for these numbers of devices that share the modules.

    >>> len(cases((4, 8), chips=8))
    18
    """
    one, several = "time_parallel", max(depths, default=1)
    result = [
        Case("sideways", "scan"),
        Case("sideways", one),
        Case("backprop", one),
        Case("sideways", one, data=chips),
        Case("backprop", one, data=chips),
    ]
    for depth in depths:
        mesh = {"depth": depth, "data": chips // depth}
        result += [
            Case("sideways", "depth_sharded", **mesh),
            Case("pipelined_backprop", "depth_sharded", **mesh),
            Case("backprop", "depth_sharded", "1f1b", **mesh),
            Case("sideways", "program_per_device", **mesh),
        ]
    result.append(Case("sideways", "scan", is_stream=True))
    if several > 1:
        for execution in ("depth_sharded", "program_per_device"):
            for depth in depths:
                result.append(Case("sideways", execution, depth=depth, is_stream=True))
    return result


def default_depths(modules: int, chips: int) -> tuple[int, ...]:
    """All chips, and half of them, if there are as many modules.

    >>> default_depths(8, 8), default_depths(6, 8), default_depths(6, 1)
    ((4, 8), (4,), ())
    """
    return tuple(n for n in (chips // 2, chips) if 1 < n <= modules)
