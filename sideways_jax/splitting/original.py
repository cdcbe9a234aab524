"""The models that `split` takes, as one pair of pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import core, linen, nnx

from sideways_jax.network import Module, Network, from_linen, from_nnx
from sideways_jax.tools.trees import PyTree


class Original(NamedTuple):
    """A model before it is cut.

    Attributes:
      module: its functions.
      values: the parameters and the state that it starts from; None if `module.init` draws them.
      variables: from parameters and state, of the structure that `module` has, to what the model
        itself calls its variables.
    """

    module: Module
    values: tuple[PyTree, PyTree] | None
    variables: Callable[[PyTree, PyTree], PyTree]


def original(model: Any, variables: PyTree | None) -> Original:
    """What `split` was given.

    Raises:
      ValueError: for what is no model, or for a function without its parameters and state.
    """
    if isinstance(model, type):
        raise ValueError(
            f"split({model.__name__}) got a class: give an object of it, "
            f"split({model.__name__}(...), frame)"
        )
    if isinstance(model, linen.Module):
        return _linen(model, variables)
    if isinstance(model, nnx.Module):
        return _nnx(model, variables)
    if isinstance(model, (Module, Network)):
        values = None if variables is None else _pair(variables, type(model).__name__)
        return Original(Module(model.init, model.apply), values, _as_pair)
    if not callable(model):
        raise ValueError(
            f"split got a {type(model).__name__}: give a model of Flax (linen or NNX), a "
            "sideways_jax.Module, or a function of (parameters, state, frame, train, key)"
        )
    return _function(model, variables)


def _linen(model: linen.Module, variables: PyTree | None) -> Original:
    def whole(params: PyTree, state: PyTree) -> PyTree:
        return {"params": params, **state}

    values = None
    if variables is not None:
        state = dict(core.unfreeze(variables))
        params = state.pop("params", {})
        values = params, state
    return Original(from_linen(model), values, whole)


def _nnx(model: nnx.Module, variables: PyTree | None) -> Original:
    if variables is not None:
        raise ValueError(
            "a module of Flax NNX holds its variables: leave out variables=, or nnx.update(model, "
            "variables) before it is split"
        )
    # The keys of random streams are no weights: `from_nnx` starts them anew at every step.
    template = nnx.to_flat_state(nnx.state(model, nnx.filterlib.Not(nnx.RngState)))

    def whole(params: PyTree, state: PyTree) -> PyTree:
        def filled(path: tuple, leaf: Any) -> Any:
            value = _found(params, path, _found(state, path, None))
            return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value

        return nnx.from_flat_state([(path, filled(path, leaf)) for path, leaf in template])

    module = from_nnx(model)
    return Original(module, module.init(jax.random.key(0), None), whole)


def _found(tree: PyTree, path: tuple, otherwise: Any) -> Any:
    """What nested dictionaries have at a path."""
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return otherwise
        tree = tree[name]
    return tree


def _function(model: Callable, variables: PyTree | None) -> Original:
    name = getattr(model, "__name__", repr(model))
    if variables is None:
        raise ValueError(
            f"split({name}) got a function without its variables: give variables=(parameters, "
            "state), () for none. A function that makes a module of Flax NNX from nnx.Rngs is "
            "wrapped first, split(from_nnx(function), ...)"
        )
    values = _pair(variables, name)

    def init(key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        return values

    def apply(
        params: PyTree, state: PyTree, x: PyTree, *, train: bool, rng: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        result = model(params, state, x, train, rng)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise ValueError(
                f"{name}(parameters, state, frame, train, key) has to return the pair (output, "
                f"new state); it returned a {type(result).__name__}"
            )
        return tuple(result)

    return Original(Module(init, apply), values, _as_pair)


def _as_pair(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    return params, state


def _pair(variables: PyTree, name: str) -> tuple[PyTree, PyTree]:
    if not isinstance(variables, (tuple, list)) or len(variables) != 2:
        raise ValueError(
            f"variables of {name} have to be the pair (parameters, state); got a "
            f"{type(variables).__name__}"
        )
    return variables[0], variables[1]
