"""A network as a list of modules: pure functions, and one pytree of parameters per module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.trees import PyTree, shape_of


class Module(NamedTuple):
    """One module `H_i(h, theta_i)` of the paper (section 3.1), as a pair of pure functions.

    Attributes:
      init: `init(key, x) -> (params, state)`. `x` is an array or a `jax.ShapeDtypeStruct` with the
        shape of a batch of inputs, `[B, ...]`; only its shape and dtype may be used.
      apply: `apply(params, state, x, *, train, rng) -> (y, new_state)`. `state` holds what is
        neither trained nor sent on, such as the running statistics of a normalisation. `rng` is a
        key that is fresh for every module and frame, or None.

    Parameters, state, inputs and outputs are pytrees; a module without parameters or state has
    `()` or `{}` in their place.

    >>> import jax, jax.numpy as jnp
    >>> scale = Module(init=lambda key, x: (jnp.float32(2.0), ()),
    ...                apply=lambda params, state, x, *, train, rng: (params * x, state))
    >>> scale.apply(jnp.float32(2.0), (), jnp.float32(3.0), train=False, rng=None)[0].item()
    6.0
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[PyTree, PyTree]]


def module_key(rng: jax.Array | None, index: int, frame_id: jax.Array | int) -> jax.Array | None:
    """The key of module `index` (0-based) for frame `frame_id` (0-based), None without `rng`.

    It depends on the module and the frame only, never on the step or the device at which the two
    meet, so that every execution draws the same dropout masks.
    """
    if rng is None:
        return None
    return jax.random.fold_in(jax.random.fold_in(rng, index), frame_id)


@dataclasses.dataclass(frozen=True)
class Network:
    """`M_theta = H_D o ... o H_1` (section 3.1): D modules, applied one after the other.

    Parameters and states are tuples of length D, one pytree per module, wherever they appear.

    Args:
      modules: the D modules, from the one that sees the frame to the one that feeds the loss.
      shortcuts: connections that skip modules; none are supported yet, it has to be empty.

    Raises:
      ValueError: without modules, or with shortcuts.
    """

    modules: tuple[Module, ...]
    shortcuts: tuple = ()

    def __post_init__(self):
        object.__setattr__(self, "modules", tuple(self.modules))
        object.__setattr__(self, "shortcuts", tuple(self.shortcuts))
        if not self.modules:
            raise ValueError("a network needs at least one module, got none")
        if self.shortcuts:
            raise ValueError(
                f"shortcuts={self.shortcuts!r}: connections that skip modules are not supported "
                "by this version; leave shortcuts empty, or put both ends into one module with "
                "sideways_jax.sequential"
            )

    @property
    def depth(self) -> int:
        """D, the number of modules."""
        return len(self.modules)

    def init(self, key: jax.Array, frame: PyTree) -> tuple[tuple, tuple]:
        """Draws the parameters and makes the initial state of every module.

        Args:
          key: a PRNG key; module i draws from `fold_in(key, i)`.
          frame: a batch of frames `[B, ...]`, or its `jax.ShapeDtypeStruct`.

        Returns:
          `(params, state)`, tuples of length D.

        Raises:
          ValueError: if a module cannot take what the module below it gives.
        """
        x = shape_of(frame)
        params, state = [], []
        for i, module in enumerate(self.modules):
            with _blame(i, self.depth, x):
                module_params, module_state = module.init(jax.random.fold_in(key, i), x)
                x = _output_shape(i, self.depth, module, module_params, module_state, x)
            params.append(module_params)
            state.append(module_state)
        return tuple(params), tuple(state)

    def apply(
        self,
        params: tuple,
        state: tuple,
        frame: PyTree,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
        frame_id: jax.Array | int = 0,
    ) -> tuple[PyTree, tuple]:
        """The synchronous forward pass, `h_D^t = M_theta(x^t)`.

        Args:
          params, state: as `init` gives them.
          frame: a batch of frames `[B, ...]`.
          train: whether normalisation uses the statistics of this batch, and dropout drops.
          rng: the key of the episode, needed by dropout when `train`.
          frame_id: the number of the frame within the episode, for the keys of dropout.

        Returns:
          `(output, new_state)`.
        """
        check_tuples(self, params, state)
        new_state = []
        x = frame
        for i, module in enumerate(self.modules):
            key = module_key(rng, i, frame_id)
            x, module_state = module.apply(params[i], state[i], x, train=train, rng=key)
            new_state.append(module_state)
        return x, tuple(new_state)

    def activation_shapes(self, params: tuple, state: tuple, frame: PyTree) -> tuple:
        """Shapes and dtypes of `h_1 ... h_D` for a batch of frames, without computing them.

        Raises:
          ValueError: if a module cannot take what the module below it gives, or if a module
            between others gives something that has no gradient (an integer, say).
        """
        check_tuples(self, params, state)
        x = shape_of(frame)
        shapes = []
        for i, module in enumerate(self.modules):
            with _blame(i, self.depth, x):
                x = _output_shape(i, self.depth, module, params[i], state[i], x)
            shapes.append(x)
        return tuple(shapes)


def sequential(modules: Sequence[Module]) -> Module:
    """Several layers in one module, so that they share a device and a computation step.

    Parameters and state are tuples with one pytree per layer; layer j draws from
    `fold_in(rng, j)`.

    Raises:
      ValueError: without modules.
    """
    modules = tuple(modules)
    if not modules:
        raise ValueError("sequential needs at least one module, got none")
    if len(modules) == 1:
        return modules[0]

    def init(key, x):
        x = shape_of(x)
        params, state = [], []
        for j, module in enumerate(modules):
            layer_params, layer_state = module.init(jax.random.fold_in(key, j), x)
            x = _eval_apply(module, layer_params, layer_state, x)
            params.append(layer_params)
            state.append(layer_state)
        return tuple(params), tuple(state)

    def apply(params, state, x, *, train, rng):
        new_state = []
        for j, module in enumerate(modules):
            key = None if rng is None else jax.random.fold_in(rng, j)
            x, layer_state = module.apply(params[j], state[j], x, train=train, rng=key)
            new_state.append(layer_state)
        return x, tuple(new_state)

    return Module(init, apply)


def cut(layers: Sequence[Module], sizes: Sequence[int]) -> Network:
    """Cuts a list of layers into a network of D = `len(sizes)` modules.

    Args:
      layers: from the input to the output.
      sizes: how many consecutive layers each module takes.

    Raises:
      ValueError: if the sizes do not use up the layers exactly.

    >>> layer = Module(lambda key, x: ((), ()), lambda params, state, x, *, train, rng: (x, state))
    >>> cut([layer] * 5, (2, 2, 1)).depth
    3
    """
    sizes = tuple(sizes)
    if any(size < 1 for size in sizes) or sum(sizes) != len(layers):
        raise ValueError(
            f"cut {sizes} takes {sum(sizes)} layers, but there are {len(layers)}: give for every "
            f"module how many consecutive layers it takes, at least 1 each, {len(layers)} in all"
        )
    modules, start = [], 0
    for size in sizes:
        modules.append(sequential(layers[start : start + size]))
        start += size
    return Network(tuple(modules))


def check_tuples(network: Network, params: tuple, state: tuple) -> None:
    """Raises ValueError unless `params` and `state` hold one pytree for every module."""
    for name, value in (("params", params), ("state", state)):
        if not isinstance(value, (tuple, list)) or len(value) != network.depth:
            got = f"{len(value)} of them" if isinstance(value, (tuple, list)) else f"{type(value)}"
            raise ValueError(
                f"{name} must be a tuple of {network.depth} pytrees, one for every module, as "
                f"Network.init gives it; got {got}"
            )


def _eval_apply(module: Module, params: PyTree, state: PyTree, x: PyTree) -> PyTree:
    def forward(params, state, x):
        return module.apply(params, state, x, train=False, rng=None)[0]

    return jax.eval_shape(forward, params, state, x)


def _output_shape(i: int, depth: int, module: Module, params, state, x: PyTree) -> PyTree:
    y = _eval_apply(module, params, state, x)
    for leaf in jax.tree.leaves(y):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"its output has dtype {leaf.dtype}, through which no gradient can flow: give a "
                "floating-point output"
            )
    return y


class _blame:
    """Says which module failed, and on what input; the original error stays attached."""

    def __init__(self, index: int, depth: int, x: PyTree):
        self.index, self.depth, self.x = index, depth, x

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None or not isinstance(error, Exception):
            return
        shapes = ", ".join(
            f"{leaf.dtype.name}{list(leaf.shape)}" for leaf in jax.tree.leaves(self.x)
        )
        source = "the frame" if self.index == 0 else f"the output of module {self.index - 1}"
        raise ValueError(
            f"module {self.index} (0-based, of {self.depth}) does not fit {source}, {shapes}: "
            f"{error}"
        ) from error
