"""What `from_linen` and `from_nnx` share: how a module learns whether this is training.

Flax has several ways: an argument of `__call__`, with several names and either sign, or an
attribute that is set when the module is made. A submodule without this information would train in
evaluation mode, with dropout off and constant statistics, in silence; here that is an error.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from sideways_jax.tools.trees import PyTree

# The names of arguments and attributes that say whether this is training, and their values.
FLAGS: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "is_train": lambda train: train,
    "is_training": lambda train: train,
    "train_mode": lambda train: train,
    "update_stats": lambda train: train,  # flax.linen.SpectralNorm
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
    "inference": lambda train: not train,
    "is_eval": lambda train: not train,
    "eval_mode": lambda train: not train,
}

TrainArgument = str | Callable[[bool], Mapping[str, Any]] | None

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@functools.lru_cache(maxsize=256)
def signature(call: Callable) -> inspect.Signature:
    """`inspect.signature`, cached: every call of every submodule needs it."""
    return inspect.signature(call)


def train_keywords(
    call: Callable, train: bool, train_argument: TrainArgument = None
) -> dict[str, Any]:
    """Keyword arguments that tell `call` whether this is training.

    Args:
      call: the method `__call__`, not bound to an object.
      train: whether this is training.
      train_argument: None for all arguments whose names are in `FLAGS`; the name of one argument,
        which means training when true, unless it is in `FLAGS`; or a function from `train` to the
        keyword arguments.

    >>> train_keywords(lambda self, x, *, deterministic: x, train=True)
    {'deterministic': False}
    >>> train_keywords(lambda self, x, mode: x, True, lambda train: {"mode": "fit" * train})
    {'mode': 'fit'}
    """
    if train_argument is None:
        names = signature(call).parameters
        return {name: say(train) for name, say in FLAGS.items() if name in names}
    if callable(train_argument):
        return dict(train_argument(train))
    return {train_argument: FLAGS.get(train_argument, bool)(train)}


def call_arguments(call: Callable, keywords: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What to pass after the activation: `(positional, by keyword)`.

    By position if possible: the `static_argnums` of `flax.linen.remat` are positions.

    >>> call_arguments(lambda self, x, mask=None, train=False, *, flag: x,
    ...                {"train": True, "flag": False})
    ((None, True), {'flag': False})
    """
    parameters = [*signature(call).parameters.values()][2:]  # After self and the activation.
    last = max((n for n, p in enumerate(parameters) if p.name in keywords), default=-1)
    positional = []
    for parameter in parameters[: last + 1]:
        if parameter.kind not in BY_POSITION:
            break
        positional.append(keywords.get(parameter.name, parameter.default))
    passed = {p.name for p in parameters[: len(positional)]}
    return tuple(positional), {name: v for name, v in keywords.items() if name not in passed}


def check_call(module: Any, train_argument: TrainArgument) -> None:
    """Raises ValueError unless a module can be called with an activation and the flags alone."""
    kind, call = type(module).__name__, type(module).__call__
    if not callable(module):
        raise ValueError(f"{kind} cannot be called: give it a method __call__(self, x)")
    parameters = signature(call).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    flags = train_keywords(call, False, train_argument)
    unknown = [name for name in flags if name not in parameters]
    if unknown and not takes_any:
        raise ValueError(
            f"train_argument: {kind}.__call__{signature(call)} has no argument {unknown[0]!r}; "
            "name the one that says whether this is training"
        )
    missing = [
        p.name
        for p in [*parameters.values()][2:]
        if p.kind not in VARIADIC
        and p.default is p.empty
        and p.name not in flags
        and p.name not in FLAGS
    ]
    if missing:
        raise ValueError(
            f"{kind}.__call__{signature(call)} needs {', '.join(missing)} beside the activation, "
            "which is all that a module is called with. If that says whether this is training, "
            f"give train_argument={missing[0]!r}. Otherwise wrap it in a module that takes the "
            "activation and makes the rest (the carry of a recurrent cell is a variable of that "
            "module)"
        )


def is_flag(value: Any) -> bool:
    """Whether a value is a flag, true or false; arrays and None are not."""
    return isinstance(value, (bool, np.bool_))


def never_drops(module: Any) -> bool:
    """Whether a module with an attribute `rate` or `dropout_rate` drops nothing in any mode."""
    rates = [getattr(module, name, None) for name in ("rate", "dropout_rate")]
    return any(isinstance(rate, (int, float)) and rate == 0 for rate in rates)


def wrong_mode(part: str, train: bool, why: str, how: str) -> ValueError:
    """The error for a part of a module that does not follow `train`.

    Args:
      part: its name.
      train: whether this is training.
      why: what the error was found from.
      how: another way of this adapter to tell it.
    """
    wanted, got = ("training", "evaluation") if train else ("evaluation", "training")
    return ValueError(
        f"{part} is in {got} mode although this is {wanted} (train={train}): {why}. Leave its "
        "attribute at None, or hand on to it an argument of the module's __call__ such as `train`; "
        f"if that has a name of its own, give train_argument=...{how}. If it is meant to be the "
        "same in both modes, give allow_fixed=True"
    )


def keep_dtypes(state: PyTree, new_state: PyTree) -> PyTree:
    """The new state in the dtypes of the old one: float32 statistics of float64 inputs stay so."""

    def keep(old: jax.Array, new: jax.Array) -> jax.Array:
        return new if new.dtype == old.dtype else new.astype(old.dtype)

    return jax.tree.map(keep, state, new_state)


def depends_on_input(function: Callable[[PyTree], PyTree], x: PyTree) -> bool:
    """Whether the result of a function depends on its input, by its traced program.

    >>> depends_on_input(lambda x: 0 * x, 1.0), depends_on_input(lambda x: 2.0, 1.0)
    (True, False)
    """
    jaxpr = jax.make_jaxpr(function)(x).jaxpr
    _, used_inputs = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return any(used_inputs)
