"""Checks of modules: their parameters, states and outputs. Errors name the module."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sideways_jax.network.module import Module
from sideways_jax.tools.trees import PyTree


def check_tuples(depth: int, params: tuple, state: tuple) -> None:
    """Raises ValueError unless `params` and `state` hold one pytree for every module."""
    for name, value in (("params", params), ("state", state)):
        if isinstance(value, (tuple, list)) and len(value) == depth:
            continue
        got = f"{len(value)} of them" if isinstance(value, (tuple, list)) else f"{type(value)}"
        hint = ""
        if isinstance(value, dict) or hasattr(value, "slots"):
            hint = (
                ". A train state of a mesh holds them packed: "
                "step.per_module makes the function that unpacks it, "
                f"to_modules(train_state).{name}"
            )
        raise ValueError(
            f"{name} must be a tuple of {depth} pytrees, one for every module, as "
            f"Network.init gives it; got {got}{hint}"
        )


def check_arrays(params: PyTree, state: PyTree, *, train: bool) -> None:
    """Raises ValueError unless a module's parameters and state are arrays.

    Args:
      params, state: of one module; arrays, or their shapes.
      train: whether the parameters have to have gradients too.
    """
    for name, tree in (("parameter", params), ("state", state)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            what = f"its {name} {jax.tree_util.keystr(path)}".rstrip()
            if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
                raise ValueError(
                    f"{what} is {leaf!r}, a {type(leaf).__name__} and not an array: make it one, "
                    "with jnp.asarray and the dtype that it should have"
                )
            if train and name == "parameter" and not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"{what} has dtype {leaf.dtype}, so it has no gradient: make it "
                    "floating-point, or, if it is not to be trained, a part of the state"
                )


def batch_size(frame: PyTree) -> int:
    """B, for the shapes of a batch of frames; ValueError if they have no common batch axis."""
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(frame)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "frames need a leading batch axis, [B, ...], with the same B in all arrays of a frame; "
            f"got {_shapes(frame)}"
        )
    return sizes.pop()[0]


def pair(result: object, what: str, names: str) -> tuple[PyTree, PyTree]:
    """The two parts of the result of a module's function; ValueError unless it has two."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        got = f"{len(result)} values" if isinstance(result, (tuple, list)) else repr(type(result))
        raise ValueError(f"{what} has to return the pair {names}; it returned {got}")
    return tuple(result)


def result_shape(
    module: Module,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    *,
    train: bool = False,
    rng: jax.Array | None = None,
) -> tuple[PyTree, PyTree]:
    """Shapes of `(y, new_state)`."""

    def call(params: PyTree, state: PyTree, x: PyTree, rng: jax.Array | None) -> tuple:
        result = module.apply(params, state, x, train=train, rng=rng)
        return pair(result, "its apply", "(y, new_state)")

    return jax.eval_shape(call, params, state, x, rng)


def checked_output(
    module: Module,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    batch: int,
    *,
    train: bool,
    rng: jax.Array | None,
) -> PyTree:
    """The shapes of `h_i`; ValueError if the output or the state of the module cannot be used."""
    y, new_state = result_shape(module, params, state, x)
    for leaf in jax.tree.leaves(y):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"its output has dtype {leaf.dtype}, through which no gradient can flow: give a "
                "floating-point output"
            )
    # A window of frames may be folded into the batch: [B * T, ...].
    if not any(leaf.shape and leaf.shape[0] % max(batch, 1) == 0 for leaf in jax.tree.leaves(y)):
        raise ValueError(
            f"its output, {_shapes(y)}, has lost the batch axis of {batch} examples: inputs and "
            "outputs are batches, [B, ...]"
        )
    _check_state(state, new_state, "")
    if not train:
        return y
    try:
        in_training, new_state = result_shape(module, params, state, x, train=True, rng=rng)
    except NameError as error:
        if "unbound axis" not in str(error):
            raise
        return y  # Statistics over an axis of the mesh, which this trace does not have.
    except Exception as error:
        raise ValueError(f"in training (train=True), {error}") from error
    if _specs(in_training) != _specs(y):
        raise ValueError(
            f"its output is {_shapes(in_training)} in training (train=True), but {_shapes(y)} in "
            "evaluation: both have to have the same structure, shapes and dtypes (cast it at the "
            "end, or compute what training needs beside it in the loss)"
        )
    _check_state(state, new_state, " in training (train=True)")
    return y


def _check_state(state: PyTree, new_state: PyTree, when: str) -> None:
    if _specs(new_state) != _specs(state):
        raise ValueError(
            f"its state is {_shapes(state)} before a call{when}, but {_shapes(new_state)} after "
            "it: init and apply have to give states of the same structure, shapes and dtypes"
        )


def _specs(tree: PyTree) -> tuple:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _shapes(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree of shapes, for messages."""
    named = [
        f"{jax.tree_util.keystr(path)}{' ' if path else ''}{leaf.dtype.name}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    return ", ".join(named) or "nothing"


class blame:
    """Adds the module and its input to an error, as a ValueError from the original error."""

    def __init__(self, what: str, x: PyTree):
        self.what, self.x = what, x

    def __enter__(self) -> blame:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        raise ValueError(f"{self.what} {_shapes(self.x)}: {error}") from error
