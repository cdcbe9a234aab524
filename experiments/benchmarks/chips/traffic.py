"""Bytes that an instruction reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from experiments.benchmarks.chips import hlo
from experiments.benchmarks.chips.hlo import Computation, Instruction, Program


class Traffic(NamedTuple):
    """Bytes, by the memory that they are in."""

    memory: float  # of the chip
    on_chip: float


def traffic(program: Program, computation: Computation, one: Instruction) -> Traffic:
    """What an instruction reads and writes.

    Of an array that it only slices the slices count, of one that it updates in place the update.
    """
    spaces = [_bytes(program, computation, one, space) for space in (0, 1)]
    return Traffic(*spaces)


def written(program: Program, computation: Computation, one: Instruction) -> int:
    """Bytes that an instruction writes, wherever: of an update in place, those of the update."""
    return sum(_written(program, computation, one, space) for space in (0, 1))


def _bytes(program: Program, computation: Computation, one: Instruction, space: int) -> float:
    total = float(_written(program, computation, one, space))
    for number, name in enumerate(one.operands):
        if name not in computation:
            continue
        whole = hlo.size(computation[name], space)
        part = _read(program, one, number)
        total += whole if part is None else min(whole, part)
    return total


def _written(program: Program, computation: Computation, one: Instruction, space: int) -> int:
    whole = hlo.size(one, space)
    update = _update_in(program, one)
    if one.op == "dynamic-update-slice":
        update = computation.get(one.operands[1])
    return whole if update is None else min(whole, hlo.size(update))


def _update_in(program: Program, one: Instruction) -> Instruction | None:
    """The part that a fusion writes into an array that it got."""
    body = _body(program, one)
    if body is None:
        return None
    last = hlo.root(body)
    while last.op == "bitcast" and last.operands[0] in body:
        last = body[last.operands[0]]
    return body.get(last.operands[1]) if last.op == "dynamic-update-slice" else None


def _read(program: Program, one: Instruction, number: int) -> int | None:
    """Bytes of an operand that are read, None for all of them."""
    if one.op in ("dynamic-slice", "slice") and number == 0:
        return hlo.size(one)
    if one.op == "dynamic-update-slice" and number == 0:
        return 0
    body = _body(program, one)
    if body is None:
        return None
    for inner in body.values():
        if inner.op == "parameter" and inner.inside == str(number):
            return _read_in(program, body, inner.name)
    return None


def _read_in(program: Program, body: Computation, name: str) -> int | None:
    """Bytes of a value in a fusion that its users read, None for all of them."""
    total = 0
    for user, number in _users(body, name):
        part = _read_in(program, body, user.name) if user.op == "bitcast" else None
        if user.op != "bitcast":
            part = _read(program, user, number)
        if part is None:
            return None
        total += part
    return total


def _users(body: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    for one in body.values():
        for number, operand in enumerate(one.operands):
            if operand == name:
                yield one, number


def _body(program: Program, one: Instruction) -> Computation | None:
    return program.computations.get(hlo.called(one, "calls") or "") if one.op == "fusion" else None
