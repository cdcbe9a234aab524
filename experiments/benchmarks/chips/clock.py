"""How long a compiled program would take on a TPU, by two estimates.

* `xla`: the compiler's own estimate of cycles of every fusion, convolution and copy. For
  element-wise work it is too slow: in sum over 120 kernels twice the machine code's cycles.
* `adj`: the same, where an element-wise instruction takes no longer than its bytes take to and from
  memory, and a product of matrices no shorter. Over those kernels its sum was that of the machine
  code.

Products of matrices may be up to twice too slow in both. The compiler does not estimate what is
added here: asynchronous copies (bytes over the rate of the memory, one after the other), messages,
and instructions without an estimate. Not modelled: that copies and kernels share the memory, and
the start of a program by the host. Nothing was ever compared with a TPU: trust ratios and causes,
not milliseconds.

A computation runs in the order of the compiler's schedule. Of a conditional the largest branch
counts: the devices of a pipeline wait for each other at every step.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.benchmarks.chips import hlo
from experiments.benchmarks.chips.hlo import Computation, Instruction, Program
from experiments.benchmarks.chips.topologies import Chip
from experiments.benchmarks.chips.traffic import traffic

ESTIMATES = ("xla", "adj")
Seconds = np.ndarray  # [2], by estimate

SMALL = 0.3e-6  # seconds that every kernel takes
HOP = 1e-6  # seconds of a message to a neighbour, without its bytes
SCALAR = 4096  # bytes; smaller results without an estimate cost nothing, the scalar unit makes them
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id",
    "after-all", "iota", "broadcast", "opt-barrier",
}  # fmt: skip
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
NO_WORK = re.compile("AllocateBuffer|ConcatBitcast|Sharding")  # custom calls that do nothing


class Message(NamedTuple):
    """What devices send each other."""

    name: str
    op: str  # "collective-permute", say
    num_bytes: int
    hops: int  # of the farthest pair of devices
    seconds: float
    is_pair: bool  # whether start and done are two instructions
    hidden: float  # seconds (adj) of work between these
    kernels: int  # the number of instructions that work between these


class Part(NamedTuple):
    """An instruction that takes time."""

    name: str
    source: str  # where it is from, in terms of JAX
    seconds: Seconds


class Loop(NamedTuple):
    """A loop."""

    trips: int
    body: Cost


class Cost(NamedTuple):
    """What a computation takes."""

    seconds: Seconds
    kernels: int  # instructions that work, those in loops as often as they run
    parts: tuple[Part, ...]  # outside of loops and switches
    messages: tuple[Message, ...]  # likewise
    loops: tuple[Loop, ...]
    switches: tuple[tuple[Cost, ...], ...]  # the branches of conditionals


def estimate(program: Program, chip: Chip | None, places: tuple[tuple[int, ...], ...] = ()) -> Cost:
    """What the program takes.

    Args:
      program: compiled.
      chip: None for one without estimates: everything but seconds is counted.
      places: the coordinates of every device of the program on the chips' grid; by default all are
        neighbours.
    """
    return _Estimate(program, chip, places).cost(program.entry)


class _Estimate:
    """Costs of the computations of a program, each computed once."""

    def __init__(self, program: Program, chip: Chip | None, places: Sequence) -> None:
        self.program, self.chip, self.places = program, chip, places
        self.known: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        if name not in self.known:
            run = _Run()
            computation = self.program.computations[name]
            for one in computation.values():
                if one.op not in FREE:
                    self._one(run, computation, one)
            self.known[name] = run.cost()
        return self.known[name]

    def _one(self, run: _Run, computation: Computation, one: Instruction) -> None:
        kind = _collective(one)
        if one.op == "while":
            self._while(run, one)
        elif one.op == "conditional":
            run.switch(tuple(self.cost(name) for name in hlo.branches(one)))
        elif one.op == "call":
            run.call(self.cost(hlo.called(one, "to_apply") or ""))
        elif one.op.endswith("-done"):
            run.wait(one.operands[0])
        elif kind is not None:
            self._message(run, one, kind)
        elif one.op.endswith("-start"):
            run.start(one.name, ("copies",), self._copy_seconds(one))
        else:
            seconds = self._seconds(computation, one)
            if seconds is not None:
                run.work(Part(one.name, source(one), seconds))

    def _while(self, run: _Run, one: Instruction) -> None:
        body = self.cost(hlo.called(one, "body") or "")
        run.loop(Loop(hlo.trips(self.program, one), body))

    def _seconds(self, computation: Computation, one: Instruction) -> Seconds | None:
        """Seconds by estimate; None for what does nothing."""
        if one.op == "custom-call" and NO_WORK.search(one.attributes):
            return None
        found = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        if found is None and hlo.size(one) <= SCALAR:
            return None
        if self.chip is None:
            return np.zeros(2)
        moved = traffic(self.program, computation, one)
        in_memory = moved.memory / self.chip.memory
        by_bytes = SMALL + in_memory + moved.on_chip / self.chip.on_chip
        if found is None:
            return np.array([by_bytes, by_bytes])
        xla = int(found[1]) / self.chip.clock
        is_matrix = "COST_MODEL_TYPE_INVALID" not in one.attributes
        return np.array([xla, max(xla, in_memory) if is_matrix else min(xla, by_bytes)])

    def _copy_seconds(self, one: Instruction) -> float:
        """Of a copy between the memory and the chip, in the background."""
        if self.chip is None:
            return 0.0
        sizes = [a for a in one.arrays if a.space in (0, 1) and a.num_bytes > 4]
        count = min((a.num_bytes for a in sizes), default=0)
        to_memory = any(a.space == 0 for a in sizes)
        return SMALL + count / (self.chip.memory if to_memory else self.chip.on_chip)

    def _message(self, run: _Run, one: Instruction, kind: str) -> None:
        is_pair = one.op.endswith("-start")
        count = sum(a.num_bytes for a in one.arrays if a.space in (0, 1))
        count //= 2 if is_pair else 1  # A start has the array that goes and the one that comes.
        pairs = _pairs(one)
        hops = max((self._hops(a, b) for a, b in pairs), default=1)
        link = self.chip.link if self.chip else np.inf
        if kind == "collective-permute":
            seconds = hops * HOP + count / link
            queue = ("link", *sorted({b > a for a, b in pairs}))
        else:  # Around a ring, both ways at the same time.
            seconds, queue = 2 * HOP + count / link, ("ring",)
        message = Message(
            one.name, kind, count, hops, seconds if self.chip else 0.0, is_pair, 0.0, 0
        )
        run.send(message, queue)

    def _hops(self, one: int, other: int) -> int:
        return hops(self.places[one], self.places[other]) if self.places else 1


class _Run:
    """A computation, instruction after instruction."""

    def __init__(self) -> None:
        self.now, self.worked, self.kernels = np.zeros(2), np.zeros(2), 0
        self.free: dict = defaultdict(lambda: np.zeros(2))  # when a queue has nothing more to do
        self.ends: dict[str, Seconds] = {}  # of what runs in the background
        self.sent: dict[str, Message] = {}
        self.before: dict[str, tuple[Seconds, int]] = {}  # work and kernels when it was sent
        self.parts: list[Part] = []
        self.loops: list[Loop] = []
        self.switches: list[tuple[Cost, ...]] = []

    def work(self, part: Part) -> None:
        self.parts.append(part)
        self._spend(part.seconds, 1)

    def loop(self, loop: Loop) -> None:
        self.loops.append(loop)
        self._spend(loop.trips * loop.body.seconds, loop.trips * loop.body.kernels)

    def switch(self, branches: tuple[Cost, ...]) -> None:
        self.switches.append(branches)
        self._spend(longest(branches), max(one.kernels for one in branches))

    def call(self, cost: Cost) -> None:
        self.parts += cost.parts
        self.loops += cost.loops
        self.switches += cost.switches
        self.sent |= {one.name: one for one in cost.messages}
        self._spend(cost.seconds, cost.kernels)

    def start(self, name: str, queue: tuple, seconds: float) -> None:
        self.free[queue] = np.maximum(self.now, self.free[queue]) + seconds
        self.ends[name] = self.free[queue]

    def send(self, message: Message, queue: tuple) -> None:
        self.sent[message.name] = message
        self.start(message.name, queue, message.seconds)
        self.before[message.name] = self.worked, self.kernels
        if not message.is_pair:
            self.wait(message.name)

    def wait(self, name: str) -> None:
        if name not in self.ends:
            return
        self.now = np.maximum(self.now, self.ends[name])
        if name in self.sent:
            worked, kernels = self.before[name]
            self.sent[name] = self.sent[name]._replace(
                hidden=float((self.worked - worked)[1]), kernels=self.kernels - kernels
            )

    def cost(self) -> Cost:
        lists = self.parts, self.sent.values(), self.loops, self.switches
        return Cost(self.now, self.kernels, *map(tuple, lists))

    def _spend(self, seconds: Seconds, kernels: int) -> None:
        self.now, self.worked = self.now + seconds, self.worked + seconds
        self.kernels += kernels


def hops(one: Sequence[int], other: Sequence[int]) -> int:
    """How far two places on the chips' grid are from each other.

    >>> hops((1, 0, 0), (0, 1, 0))
    2
    """
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def longest(branches: tuple[Cost, ...]) -> Seconds:
    """Seconds of the largest branch, which may be another one by each estimate."""
    return np.max([one.seconds for one in branches], axis=0)


def _collective(one: Instruction) -> str | None:
    base = one.op.removesuffix("-start")
    return base if base in COLLECTIVES else None


def _pairs(one: Instruction) -> list[tuple[int, int]]:
    """Senders and receivers of a permutation."""
    found = re.search(r"source_target_pairs=\{(.*?\})\}", one.attributes)
    if not found:
        return []
    return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])]


def source(one: Instruction) -> str:
    """Where an instruction is from, in terms of JAX."""
    found = re.search(r'op_name="([^"]*)"', one.attributes)
    return found[1] if found else ""
