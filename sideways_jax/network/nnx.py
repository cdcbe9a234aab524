"""Flax NNX modules as modules of a network."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from sideways_jax.network.adapters import (
    FLAGS,
    TrainArgument,
    call_arguments,
    check_call,
    depends_on_input,
    is_flag,
    keep_dtypes,
    train_keywords,
    wrong_mode,
)
from sideways_jax.network.linen import tell_linen
from sideways_jax.network.network import Module
from sideways_jax.tools.trees import PyTree, same_structure

_HOW = ", or an attribute of the module that is called `train`, which follows too"
Path = tuple[Any, ...]  # of a variable in an NNX module


def from_nnx(
    build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module,
    *,
    train_argument: TrainArgument = None,
    allow_fixed: bool = False,
) -> Module:
    """Wraps a Flax NNX module: `nnx.Param`s are trained, all other variables and arrays are state.

    Dropout draws from a key that is fresh for every module and frame, not from the streams inside
    the NNX module. In every submodule, attributes that say whether this is training get the value
    for `train`: `deterministic`, `use_running_average`, and the other names of `from_linen`. So do
    such arguments of `__call__`. Values sown as `nnx.Intermediate` are dropped.

    Args:
      build: a function that makes the NNX module from `nnx.Rngs`, called by every `init`; or an NNX
        module, of whose values every `init` returns copies (and ignores its key).
      train_argument: as in `from_linen`.
      allow_fixed: whether `nnx.Dropout` and `nnx.BatchNorm` may do the same in training as in
        evaluation, or stay unused.

    Raises:
      ValueError: unless `build` gives an NNX module that can be called with an activation. And,
        when the result is called: if dropout or batch normalisation is in evaluation mode in
        training or the other way round, or if a call makes variables.

    >>> import jax, jax.numpy as jnp
    >>> dense = from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs))
    >>> params, state = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.float32))
    >>> params["kernel"].shape
    (5, 3)
    """
    _check_build(build)
    wrapped = _Wrapped(_template(build, train_argument), train_argument, allow_fixed)
    run = functools.partial(_run, wrapped)

    def init(key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        del x  # An NNX module knows its shapes.
        made = _fresh(build, train_argument, key)
        # Copies: a train step that donates them must not take the buffers of the caller's module.
        return jax.tree.map(jnp.copy, (nnx.to_pure_dict(made.params), nnx.to_pure_dict(made.state)))

    def apply(
        params: PyTree, state: PyTree, x: PyTree, *, train: bool, rng: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        train = bool(train)
        if rng is not None or not nnx.to_flat_state(wrapped.template.streams):
            return run(params, state, x, train, rng)[:2]
        if train:
            raise ValueError("this NNX module has random streams (dropout?), training needs rng=")
        no_key = jax.random.key(0)  # Nothing may depend on it.
        y, new_state, streams = run(params, state, x, train, no_key)
        # A key that was drawn may be thrown away: nnx.RNN draws one for a carry of zeros.
        if any(stream.has_moved for stream in streams) and depends_on_input(
            lambda key: run(params, state, x, train, key)[:2], no_key
        ):
            raise ValueError(
                "this NNX module uses random numbers in evaluation (train=False), it needs rng="
            )
        return y, new_state

    return Module(init, apply)


class _Parts(NamedTuple):
    """An NNX module, taken apart."""

    graph: Any
    params: nnx.State
    streams: nnx.State  # random streams: keys and counts
    state: nnx.State


def _split(module: nnx.Module) -> _Parts:
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return _Parts(*parts)


def _fresh(
    build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module,
    train_argument: TrainArgument,
    key: jax.Array | int,
) -> _Parts:
    """The parts of a module that was never called; ValueError if it cannot be used."""
    made = nnx.clone(build) if isinstance(build, nnx.Module) else build(nnx.Rngs(key))
    if not isinstance(made, nnx.Module):
        raise ValueError(
            f"from_nnx got a function that gives a {type(made).__name__}: it has to give an "
            "NNX module"
        )
    if isinstance(made, nnx.bridge.ToNNX):
        raise ValueError("ToNNX holds a module of Flax Linen: wrap that with from_linen")
    check_call(made, train_argument)
    _mark_arrays(made)
    nnx.pop(made, nnx.Intermediate)  # A call before the wrapping may have left some.
    return _split(made)


def _template(
    build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module, train_argument: TrainArgument
) -> _Parts:
    """The parts of a new module, with shapes in place of values."""
    # The graph is no pytree, so `eval_shape` cannot return it.
    graphs: list[Any] = []

    def states() -> tuple[nnx.State, ...]:
        graph, *states = _fresh(build, train_argument, 0)
        graphs.append(graph)
        return tuple(states)

    shapes = jax.eval_shape(states)
    return _Parts(graphs[0], *shapes)


class _Wrapped(NamedTuple):
    """What every call of a wrapped NNX module needs, beside its values."""

    template: _Parts
    train_argument: TrainArgument
    allow_fixed: bool


def _run(
    wrapped: _Wrapped,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    train: bool,
    rng: jax.Array | None,
) -> tuple[PyTree, PyTree, list[_Trace]]:
    """One call: `(y, new_state, random streams)`, the streams as they are after the call."""
    template = wrapped.template
    params, state = _filled(template.params, params), _filled(template.state, state)
    old_state = nnx.to_pure_dict(state)
    module = nnx.merge(template.graph, params, _streams(template.streams, rng), state)
    call = type(module).__call__
    args, keywords = call_arguments(call, train_keywords(call, train, wrapped.train_argument))
    _set_flags(module, train)
    before, traces, streams = _values(module), [*_traces(module)], [*_draws(module)]
    with tell_linen(train, allow_fixed=wrapped.allow_fixed):  # For nnx.bridge.ToNNX.
        y = module(x, *args, **keywords)
    nnx.pop(module, nnx.Intermediate)
    _check_variables(before, _values(module))
    if not wrapped.allow_fixed:
        _check_modes(traces, train)
    return y, keep_dtypes(old_state, nnx.to_pure_dict(_split(module).state)), streams


def _check_build(build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module) -> None:
    """Raises ValueError, with the fix, for anything but an NNX module or a function."""
    if isinstance(build, type):
        raise ValueError(
            f"from_nnx({build.__name__}) got a class: give a function that makes an object of it, "
            f"from_nnx(lambda rngs: {build.__name__}(..., rngs=rngs))"
        )
    if isinstance(build, linen.Module):
        raise ValueError(f"{type(build).__name__} is a module of Flax Linen: use from_linen")
    if isinstance(build, Module):
        raise ValueError(
            "from_nnx got a sideways_jax.Module, which a network takes as it is: leave out from_nnx"
        )
    if not isinstance(build, nnx.Module) and not callable(build):
        raise ValueError(
            f"from_nnx got a {type(build).__name__}: give an NNX module, or a function that makes "
            "one from nnx.Rngs"
        )


def _mark_arrays(module: nnx.Module) -> None:
    """Marks attributes that are arrays as data; NNX does so only outside of a trace."""
    for _, node in [*nnx.iter_graph(module)]:
        if isinstance(node, nnx.Pytree):
            for name, value in [*vars(node).items()]:
                if isinstance(value, jax.Array):
                    setattr(node, name, nnx.data(value))


def _filled(template: nnx.State, values: PyTree) -> nnx.State:
    """The state with the given values, nested dictionaries as `nnx.to_pure_dict` gives them."""
    filled = []
    for path, leaf in nnx.to_flat_state(template):
        value = values
        for name in path:
            value = (
                value[name] if name in value else value[str(name)]
            )  # Names are strings if it comes from a file.
        # An attribute that is an array has no nnx.Variable around it.
        filled.append((path, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
    return nnx.from_flat_state(filled)


def _streams(template: nnx.State, rng: jax.Array | None) -> nnx.State:
    """The random streams, started anew from `rng`: each has a key of its own and counts from 0."""
    if rng is None:  # `from_nnx` has made sure that there are no streams.
        return nnx.from_flat_state([])
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    restarted = []
    for n, (path, variable) in enumerate(nnx.to_flat_state(template)):
        shape = variable.get_value().shape  # Not () for the layers that nnx.vmap makes.
        if isinstance(variable, nnx.RngKey):
            value = jax.random.fold_in(rng, n)
            value = jax.random.split(value, shape) if shape else value
        else:
            value = jnp.zeros(shape, jnp.uint32)
        restarted.append((path, variable.replace(value)))
    return nnx.from_flat_state(restarted)


def _set_flags(module: nnx.Module, train: bool) -> None:
    """Sets the attributes of all submodules that say whether this is training."""
    for _, part in nnx.iter_modules(module):
        for name, say in FLAGS.items():
            old = inspect.getattr_static(part, name, inspect.Parameter.empty)  # Maybe a method.
            if old is None or is_flag(old):
                setattr(part, name, say(train))


def _values(module: nnx.Module) -> dict[Path, Any]:
    """The value of every variable, and every array, by its path."""
    return {
        path: leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        for path, leaf in nnx.to_flat_state(nnx.state(module))
    }


def _check_variables(before: dict[Path, Any], after: dict[Path, Any]) -> None:
    """Raises ValueError if a call made variables, or changed the structure of some."""
    for path in {**before, **after}:
        name = ".".join(map(str, path))
        if path not in before:
            raise ValueError(
                f"a call of this NNX module makes the variable {name}: what is trained or kept has "
                "to be there from the beginning, make it in __init__. If it is sown, make it a "
                "part of the output, or sow it as nnx.Intermediate, which is dropped"
            )
        if not same_structure(before[path], after.get(path)):
            old, new = (jax.tree.structure(values.get(path)) for values in (before, after))
            raise ValueError(
                f"a call of this NNX module changes the structure of the variable {name} from "
                f"{old} to {new}: what is trained or kept has to keep its structure"
            )


class _Trace(NamedTuple):
    """Variables that show what a submodule did in a call."""

    name: str  # of the part
    moves: nnx.Variable  # changes in training
    stays: nnx.Variable | None  # does not
    old: tuple  # the values of both before the call

    @property
    def is_unknown(self) -> bool:
        """Whether all values are new objects, as after `nnx.remat` and `nnx.jit`."""
        return self.stays is None or self.stays.get_value() is not self.old[1]

    @property
    def has_moved(self) -> bool:
        """Whether the value of `moves` is new."""
        return self.moves.get_value() is not self.old[0]


def _trace(path: Path, part: Any, moves: nnx.Variable, stays: nnx.Variable | None) -> _Trace:
    name = f"{'.'.join(map(str, path)) or 'the module itself'} ({type(part).__name__})"
    old = moves.get_value(), None if stays is None else stays.get_value()
    return _Trace(name, moves, stays, old)


def _traces(module: nnx.Module) -> Iterator[_Trace]:
    """Traces of dropout, which draws, and of batch normalisation, whose statistics move."""
    for path, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm):
            yield _trace(path, part, part.mean, part.bias if part.scale is None else part.scale)
        elif isinstance(part, (nnx.Dropout, nnx.MultiHeadAttention)):
            rate = part.rate if isinstance(part, nnx.Dropout) else part.dropout_rate
            if 0 < rate < 1 and isinstance(part.rngs, nnx.RngStream):
                yield _trace(path, part, part.rngs.count, part.rngs.key)


def _draws(module: nnx.Module) -> Iterator[_Trace]:
    """Traces of all random streams."""
    for path, part in nnx.iter_graph(module):
        if isinstance(part, nnx.RngStream):
            yield _trace(path, part, part.count, part.key)


def _check_modes(traces: Sequence[_Trace], train: bool) -> None:
    """Raises ValueError if dropout or batch normalisation did not follow `train` in a call.

    Their attributes were set, but arguments of their calls take precedence.
    """
    for one in traces:
        if train and not one.has_moved:
            why = "it drew no random numbers, or its statistics did not move, if it ran at all"
            raise wrong_mode(one.name, train, why, _HOW)
        if not train and one.has_moved and not one.is_unknown:
            raise wrong_mode(one.name, train, "an argument of its call says so", _HOW)
