"""Where the time of a compiled program goes, and what is in its steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.benchmarks.chips import hlo, traffic
from experiments.benchmarks.chips.clock import Cost, Loop, Message, Part, Seconds, longest
from experiments.benchmarks.chips.hlo import Instruction, Program

MOVES = ("copy", "pad", "add", "convert", "transpose", "concatenate", "dynamic-update-slice")


class Steps(NamedTuple):
    """The steps of the loop that takes longest."""

    trips: int
    branches: Seconds  # of a step: the largest branches of its switches
    rest: Seconds  # of a step: all else in it
    messages: tuple[Message, ...]
    switches: int  # of a step, by how often they run
    kernels: int  # of a step
    parts: tuple[Part, ...]  # outside of the switches, the longest first


class Reading(NamedTuple):
    """Where the time of a program goes."""

    seconds: Seconds  # of the whole program
    outside: Seconds  # of the loop
    steps: Steps | None  # None for a program without a loop


def read(cost: Cost) -> Reading:
    """Divides the time of a program into that of its steps and the rest."""
    loop = _main_loop(cost)
    if loop is None:
        return Reading(cost.seconds, cost.seconds, None)
    body, outside = loop.body, cost.seconds - loop.trips * loop.body.seconds
    branches = _in_branches(body)
    parts = sorted(_parts(body), key=lambda part: -part.seconds[1])
    steps = Steps(
        loop.trips, branches, body.seconds - branches, tuple(_messages(body)), _switches(body),
        body.kernels, tuple(parts),
    )  # fmt: skip
    return Reading(cost.seconds, outside, steps)


def _main_loop(cost: Cost) -> Loop | None:
    def weight(loop: Loop) -> tuple[float, int]:
        return loop.trips * float(loop.body.seconds[1]), loop.trips * loop.body.kernels

    return max(cost.loops, key=weight, default=None)


def _in_branches(cost: Cost) -> Seconds:
    inner = [longest(branches) for branches in cost.switches]
    inner += [loop.trips * _in_branches(loop.body) for loop in cost.loops]
    return np.sum(inner, axis=0) if inner else np.zeros(2)


def _switches(cost: Cost) -> int:
    return len(cost.switches) + sum(loop.trips * _switches(loop.body) for loop in cost.loops)


def _messages(cost: Cost) -> list[Message]:
    return [*cost.messages, *(one for loop in cost.loops for one in _messages(loop.body))]


def _parts(cost: Cost) -> list[Part]:
    inner = [
        part._replace(seconds=loop.trips * part.seconds)
        for loop in cost.loops
        for part in _parts(loop.body)
    ]
    return [*cost.parts, *inner]


class Move(NamedTuple):
    """An instruction that writes many bytes."""

    computation: str
    instruction: Instruction
    num_bytes: int


def moves(program: Program, name: str, least: int) -> list[Move]:
    """Instructions of a computation, and of what it runs, that copy, pad, add or convert a lot.

    Args:
      program: compiled.
      name: of the computation.
      least: bytes that an instruction writes, with the padding of tiles.
    """
    result = []
    for inside, one in hlo.everything_in(program, name):
        count = traffic.written(program, program.computations[inside], one)
        if count >= least and _moves(program, one):
            result.append(Move(inside, one, count))
    return result


def _moves(program: Program, one: Instruction) -> bool:
    body = hlo.called(one, "calls")
    if one.op == "fusion" and body in program.computations:
        return any(_moves(program, inner) for inner in program.computations[body].values())
    return one.op.removesuffix("-start") in MOVES


def loop_bodies(program: Program) -> list[str]:
    """The bodies of the loops of the main computation, that which runs most often last."""
    loops = [one for _, one in hlo.everything_in(program, program.entry) if one.op == "while"]
    loops.sort(key=lambda one: hlo.trips(program, one))
    return [body for one in loops if (body := hlo.called(one, "body"))]
