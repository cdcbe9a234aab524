"""A compiled program: the text that XLA writes of it, as data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")


class Array(NamedTuple):
    """An array of a program."""

    dtype: str
    dims: tuple[int, ...]
    num_bytes: int  # in memory, with the padding of its tiles
    space: int  # 0: the memory of the chip, 1: on the chip (VMEM), others: flags


class Instruction(NamedTuple):
    """An instruction of a program."""

    name: str
    op: str  # such as "fusion"
    arrays: tuple[Array, ...]  # its result; several if that is a tuple
    operands: tuple[str, ...]  # names of instructions of the same computation
    inside: str  # what is between the parentheses
    attributes: str  # what comes after them
    is_root: bool


Computation = dict[str, Instruction]  # by name, in the order in which they run


class Program(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program, out of `Compiled.as_text()`.

    Raises:
      ValueError: for another text.
    """
    computations: dict[str, Computation] = {}
    entry, now = None, None
    for line in text.splitlines():
        if now is None:
            if found := _COMPUTATION.match(line):
                now = computations.setdefault(found[2], {})
                entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            now = None
        elif found := _INSTRUCTION.match(line):
            one = _instruction(found[2], found[3], is_root=bool(found[1]))
            now[one.name] = one
    if entry is None:
        raise ValueError(f"this is no compiled program, it has no ENTRY: {text[:80]!r}")
    return Program(computations, entry)


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    shape, rest = _split_shape(text)
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        name, rest[:start], arrays(shape), operands, inside, rest[end + 1 :], is_root
    )


def _split_shape(text: str) -> tuple[str, str]:
    """The shape of a result, and what follows; the shape of a tuple is in parentheses."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for k in range(start, len(text)):
        depth += (text[k] == "(") - (text[k] == ")")
        if depth == 0:
            return k
    raise ValueError(f"a parenthesis is not closed: {text[:80]!r}")


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape.

    >>> arrays("f32[8,100]{1,0:T(8,128)}")
    (Array(dtype='f32', dims=(8, 100), num_bytes=4096, space=0),)
    >>> [one.num_bytes for one in arrays("(bf16[3]{0:S(1)}, s32[])")]
    [6, 4]
    """
    found = _ARRAY.finditer(_COMMENT.sub("", shape))
    return tuple(_array(*one.groups()) for one in found if one[1] in BITS)


def _array(dtype: str, dims: str, layout: str | None) -> Array:
    sizes = tuple(int(x) for x in dims.split(",") if x)
    layout = layout or ""
    order = [int(x) for x in layout.split(":")[0].split(",") if x.strip().isdigit()]
    # From the slowest dimension to the fastest.
    held = [sizes[k] for k in reversed(order)] if len(order) == len(sizes) else list(sizes)
    if tile := re.search(r"T\(([\d,]+)\)", layout):
        tiles = [int(x) for x in tile[1].split(",")]
        held = [1] * (len(tiles) - len(held)) + held
        for k, one in enumerate(reversed(tiles), start=1):
            held[-k] = -(-held[-k] // one) * one
    space = re.search(r"S\((\d+)\)", layout)
    return Array(dtype, sizes, math.prod(held) * BITS[dtype] // 8, int(space[1]) if space else 0)


def size(one: Instruction, space: int | None = None) -> int:
    """Bytes of a result, in one kind of memory or in all."""
    return sum(array.num_bytes for array in one.arrays if space in (None, array.space))


def root(computation: Computation) -> Instruction:
    """The instruction whose result is that of the computation."""
    return next(one for one in computation.values() if one.is_root)


def called(one: Instruction, key: str) -> str | None:
    """The computation that an attribute names: "calls", "body", "condition" or "to_apply"."""
    found = re.search(rf"\b{key}=%?([\w.\-]+)", one.attributes)
    return found[1] if found else None


def branches(one: Instruction) -> list[str]:
    """The computations of a conditional."""
    if found := re.search(r"branch_computations=\{([^}]*)\}", one.attributes):
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    two = [called(one, key) for key in ("false_computation", "true_computation")]
    return [name for name in two if name]


def trips(program: Program, loop: Instruction) -> int:
    """How often a loop runs: as the compiler says, or the largest constant that ends it."""
    if found := re.search(r"known_trip_count\D*(\d+)", loop.attributes):
        return int(found[1])
    ends = [1]
    waiting = [called(loop, "condition")]
    while waiting:
        for one in program.computations.get(waiting.pop() or "", {}).values():
            if one.op == "constant" and one.inside.isdigit():
                ends.append(int(one.inside))
            waiting.append(called(one, "calls"))
    return max(ends)


def everything_in(program: Program, name: str) -> Iterator[tuple[str, Instruction]]:
    """All instructions of a computation and of the loops, branches and calls in it, not of fusions.

    With each comes the name of the computation that it is in.
    """
    for one in program.computations[name].values():
        yield name, one
        inner = [*branches(one), called(one, "body")]
        inner += [called(one, "to_apply")] if one.op == "call" else []
        for other in filter(None, inner):
            yield from everything_in(program, other)
