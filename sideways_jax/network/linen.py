"""Flax Linen modules as modules of a network."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import core, errors, linen, nnx
from jax.core import Tracer

from sideways_jax.network.adapters import (
    FLAGS,
    TrainArgument,
    call_arguments,
    check_call,
    is_flag,
    keep_dtypes,
    never_drops,
    signature,
    train_keywords,
    wrong_mode,
)
from sideways_jax.network.network import Module
from sideways_jax.tools.programs import dependent, inline_calls
from sideways_jax.tools.trees import PyTree, same_structure, shape_of

INTERMEDIATES = "intermediates"  # The collection that Linen modules sow into for inspection.


def from_linen(
    module: linen.Module | Callable[..., linen.Module],
    *,
    train_argument: TrainArgument = None,
    rng_streams: Sequence[str] = ("dropout",),
    ignore: Sequence[str] = (),
    allow_fixed: bool = False,
) -> Module:
    """Wraps a Flax Linen module: `params` are trained, all other collections are state.

    Every argument of `module.__call__` with one of these names says whether this is training:
    `train`, `training`, `is_train`, `is_training`, `train_mode`, `update_stats` or, for the
    opposite, `deterministic`, `use_running_average`, `inference`, `is_eval`, `eval_mode`. A
    submodule to which the module around it passes no such argument, an error in plain Flax, gets it
    as well: `nn.Sequential([nn.Dense(4), nn.Dropout(0.5)])` works.

    The state keeps the dtypes that it has after `init`.

    Args:
      module: beside those it takes one argument, the activation of the module below. Or a function
        `module(train=...)` that makes it, for modules with an attribute in place of an argument.
      train_argument: for an argument with another name, or behind `**kwargs`: the name of one that
        is true in training; or a function from `train` to keyword arguments, such as
        `lambda train: {"mode": "fit" if train else "predict"}`.
      rng_streams: the names of the random streams that it draws from; each gets a key of its own,
        fresh for every module and frame.
      ignore: collections that are neither trained nor kept, beside "intermediates", such as those
        that `sow` writes for inspection.
      allow_fixed: whether submodules may be in the same mode in training and in evaluation, such as
        batch normalisation with frozen statistics.

    Raises:
      ValueError: unless `module` is a Linen module that can be called with an activation. And, when
        the result is initialised or called: if a submodule is in evaluation mode in training or
        the other way round, or if an initial state depends on the values of the input.

    >>> import jax, jax.numpy as jnp
    >>> dense = from_linen(linen.Dense(3))
    >>> params, state = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.float32))
    >>> params["kernel"].shape, state
    ((5, 3), {})
    """
    if isinstance(rng_streams, str) or isinstance(ignore, str):
        raise ValueError(
            f"rng_streams={rng_streams!r} and ignore={ignore!r} have to be sequences of names: "
            'write ("dropout",) for a single one'
        )
    in_mode = {train: _linen_module(module, train, train_argument) for train in (False, True)}
    wrapped = _Wrapped(
        in_mode, train_argument, tuple(rng_streams), (INTERMEDIATES, *ignore), allow_fixed
    )

    def init(key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        params_key, other_key = jax.random.split(key)
        rngs = {**_streams(wrapped, other_key), "params": params_key}
        with _told_mode(wrapped, False, other_key) as (one, args, keywords):
            variables = _init_variables(one, rngs, shape_of(x), args, keywords, wrapped.ignored)
        params = variables.pop("params", {})
        return params, variables

    return Module(init, functools.partial(_apply, wrapped))


class _Wrapped(NamedTuple):
    """What every call of a wrapped Linen module needs, beside its values."""

    in_mode: Mapping[bool, linen.Module]  # by `train`
    train_argument: TrainArgument
    rng_streams: tuple[str, ...]
    ignored: tuple[str, ...]  # collections that are neither trained nor kept
    allow_fixed: bool


def _streams(wrapped: _Wrapped, rng: jax.Array | None) -> dict[str, jax.Array]:
    """The key of every random stream."""
    if rng is None:
        return {}
    if len(wrapped.rng_streams) == 1:
        return {wrapped.rng_streams[0]: rng}
    return {name: jax.random.fold_in(rng, n) for n, name in enumerate(wrapped.rng_streams)}


@contextlib.contextmanager
def _told_mode(
    wrapped: _Wrapped, train: bool, rng: jax.Array | None
) -> Iterator[tuple[Any, tuple, dict[str, Any]]]:
    """`(Linen module of this mode, arguments after the activation, keyword arguments)`."""
    one = wrapped.in_mode[train]
    keywords = _keywords(one, train, wrapped.train_argument)
    arguments = call_arguments(type(one).__call__, keywords)
    with (
        tell_linen(train, keywords, wrapped.allow_fixed),
        _explained(train, rng, wrapped.rng_streams),
    ):
        yield one, *arguments


def _apply(
    wrapped: _Wrapped,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    *,
    train: bool,
    rng: jax.Array | None,
) -> tuple[PyTree, PyTree]:
    """`Module.apply` of a wrapped Linen module."""
    train = bool(train)
    variables, rngs = {"params": params, **state}, _streams(wrapped, rng)

    def call(mutable: bool | list[str]) -> Any:
        with _told_mode(wrapped, train, rng) as (one, args, keywords):
            return one.apply(variables, x, *args, rngs=rngs, mutable=mutable, **keywords)

    if train:
        # "train" is no collection: nn.jit takes a program from its cache if the collections that
        # may change are the same, and does not compare what submodules are told.
        y, new_state = call([*state, "train"])
        return y, _like(state, new_state)
    try:
        return call(False), state
    except errors.ModifyScopeVariableError:  # A memory, for example, changes in evaluation too.
        y, new_state = call([*state])
        return y, _like(state, new_state)


def _linen_module(
    module: linen.Module | Callable[..., linen.Module], train: bool, train_argument: TrainArgument
) -> linen.Module:
    """The Linen module of one mode; ValueError if it cannot be used, with the fix."""
    if isinstance(module, type):
        raise ValueError(
            f"from_linen({module.__name__}) got a class: give an object of it, "
            f"from_linen({module.__name__}(...))"
        )
    if isinstance(module, nnx.Module):
        raise ValueError(f"{type(module).__name__} is a module of Flax NNX: use from_nnx")
    if isinstance(module, Module):
        raise ValueError(
            "from_linen got a sideways_jax.Module, which a network takes as it is: leave out "
            "from_linen"
        )
    made = module
    if not isinstance(made, linen.Module):
        try:
            made = made(train=train)
        except TypeError as error:
            raise ValueError(
                f"from_linen got {module!r}: give a Linen module, or a function that makes one and "
                f"is called as module(train={train}), which failed: {error}"
            ) from error
        if not isinstance(made, linen.Module):
            raise ValueError(
                f"from_linen got a function that gives a {type(made).__name__}: it has to give a "
                "Linen module"
            )
    if made.scope is not None:
        raise ValueError(
            f"this {type(made).__name__} is bound to variables: give one that is not, such as "
            "module.unbind()[0]"
        )
    check_call(made, train_argument)
    return made


def _keywords(module: linen.Module, train: bool, train_argument: TrainArgument) -> dict[str, Any]:
    """The flags of the outermost module, without those that its attributes have set."""
    keywords = train_keywords(type(module).__call__, train, train_argument)
    if train_argument is not None:
        return keywords
    parameters = signature(type(module).__call__).parameters
    # With an attribute of the same name, one of the two has to be None (flax.linen.merge_param).
    settled = _fields(module)
    return {
        name: mode
        for name, mode in keywords.items()
        if parameters[name].default is not None or settled.get(name) is None
    }


def _fields(module: linen.Module) -> dict[str, Any]:
    return {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}


@contextlib.contextmanager
def tell_linen(
    train: bool, keywords: Mapping[str, Any] | None = None, allow_fixed: bool = False
) -> Iterator[None]:
    """A context in which Linen submodules without a mode get `train`.

    In plain Flax they raise an error: an argument with a name of `FLAGS` is missing or None, and so
    is its default, and the attribute of that name is None.

    Args:
      train: the mode.
      keywords: the flags of the outermost module.
      allow_fixed: as in `from_linen`; otherwise a submodule in the other mode is a ValueError.
    """

    def tell(
        call: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        context: linen.module.InterceptorContext,
    ) -> Any:
        if context.method_name == "__call__":
            args, kwargs = _told(context.module, args, kwargs, train, keywords or {}, allow_fixed)
        return call(*args, **kwargs)

    with linen.intercept_methods(tell):
        yield


def _told(
    module: linen.Module,
    args: tuple,
    kwargs: dict[str, Any],
    train: bool,
    keywords: Mapping[str, Any],
    allow_fixed: bool,
) -> tuple[tuple, dict[str, Any]]:
    """`(args, kwargs)` for a call of a submodule, or of the outermost module."""
    if isinstance(module, nnx.bridge.ToLinen) and not allow_fixed:
        raise ValueError(
            f"{_name(module)} is a module of Flax NNX inside one of Linen, and cannot be told "
            "whether this is training: wrap the NNX module with from_nnx, or, if it is the same in "
            "both modes, give allow_fixed=True"
        )
    is_outermost = module.path == ()
    if is_outermost:  # nn.remat and nn.jit trace arguments, unless they were named as static.
        kwargs = {n: keywords.get(n, v) if isinstance(v, Tracer) else v for n, v in kwargs.items()}
    call = signature(type(module).__call__)
    try:
        given = call.bind_partial(module, *args, **kwargs)
    except TypeError:  # The call itself raises it with a better message.
        return args, kwargs
    fields, told = _fields(module), {}
    for name, mode in keywords.items():
        if is_outermost and isinstance(given.arguments.get(name), Tracer):
            told[name] = mode
    for name, say in FLAGS.items():
        if name in told:
            continue
        parameter = call.parameters.get(name)
        mode = None
        if parameter is not None:
            default = None if parameter.default is parameter.empty else parameter.default
            mode = given.arguments.get(name, default)
        if mode is None:
            mode = fields.get(name)
        if mode is None and parameter is not None:
            told[name] = say(train)
        ignorable = allow_fixed or (name == "deterministic" and never_drops(module))
        if is_flag(mode) and mode != say(train) and not ignorable:
            raise wrong_mode(
                _name(module),
                train,
                f"it has {name}={bool(mode)}",
                ", or give a function that makes the module for either mode, "
                "from_linen(lambda train: ...)",
            )
    if not told:
        return args, kwargs
    given.arguments |= told
    return given.args[1:], given.kwargs


def _name(module: linen.Module) -> str:
    return f"{'/'.join(module.path) or 'the module itself'} ({type(module).__name__})"


def _init_variables(
    module: linen.Module, rngs: dict, x: PyTree, args: tuple, keywords: dict, ignored: Sequence[str]
) -> dict:
    """The variables of a module, as dictionaries.

    Raises:
      ValueError: if something is sown that is not ignored, or if an initial value depends on the
        values of the input.
    """

    def without(*collections: str) -> core.DenyList:
        return core.DenyList((*ignored, *collections))

    def shapes(*collections: str) -> PyTree:
        return jax.eval_shape(
            lambda x: module.init(rngs, x, *args, mutable=without(*collections), **keywords), x
        )

    def is_sown(collection: str) -> bool:
        try:
            shapes(collection)
        except errors.FlaxError:  # Variables have to be made, sowing is optional.
            return False
        return True

    try:
        variables = module.lazy_init(rngs, x, *args, mutable=without(), **keywords)
        failed: Exception | None = None
    except errors.LazyInitError as error:
        variables, failed = shapes(), error
    for collection in sorted(set(variables) - {"params", "batch_stats"}):
        if is_sown(collection):
            raise ValueError(
                f"it sows into the collection {collection!r}. What is sown is neither trained nor "
                "sent on; a loss in there would be forgotten. Make it a part of the output, or, if "
                f"training does not need it, give ignore=({collection!r},)"
            ) from failed
    # From Flax 0.12.9 on `lazy_init` takes zeros for the input, and says nothing.
    traced = jax.make_jaxpr(lambda x: module.init(rngs, x, *args, mutable=without(), **keywords))
    program = inline_calls(traced(x))
    if failed is not None or any(dependent(program, program.inputs)):
        raise ValueError(
            "a variable has an initial value that depends on the values of the input, of which "
            "only the shape and the dtype are known. A module with a memory must not write it "
            "while it is made: `if not self.is_initializing(): memory.value = ...`"
        ) from failed
    return core.unfreeze(variables)


def _like(state: PyTree, new_state: PyTree) -> PyTree:
    """The new state, with the structure and the dtypes of the old one."""
    new_state = core.unfreeze(new_state)
    if not same_structure(new_state, state):
        raise ValueError(
            f"its variables change from {jax.tree.structure(state)} to "
            f"{jax.tree.structure(new_state)} in a call: make all of them in every mode, and give "
            "ignore= the collections that only grow (sow)"
        )
    return keep_dtypes(state, new_state)


@contextlib.contextmanager
def _explained(train: bool, rng: jax.Array | None, rng_streams: Sequence[str]) -> Iterator[None]:
    """Adds the fix to errors of Flax and JAX that do not name it."""
    try:
        yield
    except errors.InvalidRngError as error:
        if rng is None:
            when = "" if train else " in evaluation, where there are none"
            raise ValueError(
                f"this Linen module draws random numbers{when}, it needs rng=: {error}"
            ) from error
        raise ValueError(
            f"this Linen module draws from a random stream that is not in {rng_streams=}; give "
            f"from_linen the names of all: {error}"
        ) from error
    except jax.errors.TracerBoolConversionError as error:
        raise ValueError(
            "a decision of this Linen module depends on a traced value. If that is the argument "
            "that says whether this is training: nn.remat and nn.jit trace arguments unless they "
            "are given by position and named as static, nn.remat(Block, static_argnums=(2,)) for "
            f"the first after the activation. {error}"
        ) from error
