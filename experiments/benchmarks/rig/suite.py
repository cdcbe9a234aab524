"""The protocol of benchmark suites, and the flags of `experiments/benchmark.py` made from it."""

from __future__ import annotations

import json
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from absl import flags
from rich.progress import Progress

from experiments.processes.machine import machine

Row = dict[str, Any]  # a result, JSON, with at least "suite", "model", "batch" and "size"
Dtype = Literal["float32", "bfloat16"]  # of activations

COLOURS = {  # in pictures, by rule or schedule of backprop
    "sideways": "tab:orange",
    "backprop": "tab:blue",
    "blocking": "tab:blue",
    "gpipe": "tab:red",
    "1f1b": "tab:green",
    "pipelined_backprop": "tab:purple",
    "tsm": "tab:olive",
}
HELP = {
    "batch": "clips",
    "camera": "frames a second of the camera that is watched",
    "depths": "the numbers of devices N that share the modules",
    "devices": "the numbers of devices N",
    "dtype": "of the activations",
    "forced": "devices of one process instead of processes with cores of their own",
    "frames": "frames K of the clips that are timed",
    "matrix": "rows of the matrices (1024 do for a CPU)",
    "memory_frames": "the numbers of frames K for the memory",
    "model": "the network; chip and chips measure simple_cnn and vgg8 if none is given",
    "modules": "the numbers of modules D into which the network is cut",
    "only": "a word in the names of the executions that are compiled",
    "path": "a video or camera to watch; moving digits if none is given",
    "rounds": "timed calls of each program, in turn",
    "size": "height and width of the frames, pixels",
    "topology": "of chips to compile for: v5e:2x4, v4:2x2x1, v5p:2x2x2, h100:8",
    "weights": "a file with pretrained weights of the network; random ones if none is given",
}


class Suite(NamedTuple):
    """A suite: a file in `suites` that ends with one, and a line in `experiments/benchmark.py`."""

    # A NamedTuple class. Its fields are the flags that the suite takes, with their defaults; the
    # types may be int, float, bool, str, a Literal of strings, a tuple of int, or one of these or
    # None; `batch` and `size` are among them. `HELP` explains them.
    settings: type
    check: Callable[[Any], None]  # check(settings): ValueError for what cannot be measured
    # rows(settings, progress): measures; one row after the other, if each takes minutes.
    rows: Callable[[Any, Progress], Iterable[Row]]
    picture: Callable[[list[Row], str | os.PathLike[str]], None]  # picture(rows, path): a PNG
    columns: Mapping[str, str]  # of the table: names in the rows, and how to format each
    headers: Mapping[str, str] = types.MappingProxyType({})  # of columns that need another title
    shown: Callable[[list[Row]], list[Row]] = list  # the rows in the table


def written(rows: Iterable[Row], path: pathlib.Path | None) -> list[Row]:
    """All rows; each is in the file, if there is one, as soon as it is measured."""
    found = []
    for row in rows:
        found.append(row)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": machine(), "rows": found}, indent=2) + "\n")
    return found


def define_flags(suites: Mapping[str, Suite]) -> tuple[str, ...]:
    """Defines a flag for every setting of the suites, and gives their names.

    A flag that is not given is None: the defaults belong to the suites.
    """
    kinds = {}
    for suite in suites.values():
        kinds |= get_type_hints(suite.settings)
    for name, kind in kinds.items():
        takers = {n: one.settings._field_defaults[name] for n, one in suites.items()
                  if name in one.settings._fields}  # fmt: skip
        defaults = "; ".join(
            f"{shown} in {', '.join(n for n, d in takers.items() if _text(d) == shown)}"
            for shown in dict.fromkeys(map(_text, takers.values()))
        )
        _define(name, _without_none(kind), f"{HELP[name]} ({defaults})")
    return tuple(kinds)


def settings_of(name: str, suite: Suite, given: Mapping[str, Any]) -> Any:
    """The settings of a suite.

    Args:
      name: of the suite.
      suite: itself.
      given: the flags that the user set; a list of strings for a tuple of numbers.

    Raises:
      ValueError: for a setting that the suite does not have, or text in place of numbers.
    """
    fields = suite.settings._fields
    if others := [one for one in given if one not in fields]:
        raise ValueError(
            f"--suite={name} takes no --{others[0]}; it takes --{', --'.join(sorted(fields))}"
        )
    values = {}
    for field, value in given.items():
        if isinstance(value, list):
            if not all(text.isdecimal() and int(text) for text in value) or not value:
                raise ValueError(f"--{field}={','.join(value)} must be numbers from 1 on")
            value = tuple(map(int, value))
        values[field] = value
    return suite.settings(**values)


def _define(name: str, kind: Any, text: str) -> None:
    if kind is bool:
        flags.DEFINE_bool(name, None, text)
    elif kind is int:
        flags.DEFINE_integer(name, None, text, lower_bound=1)
    elif kind is float:
        flags.DEFINE_float(name, None, text, lower_bound=0)
    elif kind is str:
        flags.DEFINE_string(name, None, text)
    elif get_origin(kind) is Literal:
        flags.DEFINE_enum(name, None, list(get_args(kind)), text)
    else:  # A tuple of int.
        flags.DEFINE_list(name, None, text)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kind, _ = get_args(kind)
    return kind


def _text(default: Any) -> str:
    if default is None:
        return "none"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def names(rows: Iterable[Row]) -> str:
    """The networks of some rows, for a title."""
    return ", ".join(dict.fromkeys(row["model"] for row in rows))
