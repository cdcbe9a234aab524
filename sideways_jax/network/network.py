"""A network as a list of modules: pure functions, and one pytree of parameters per module."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from sideways_jax.network.checks import (
    batch_size,
    blame,
    check_arrays,
    check_tuples,
    checked_output,
    pair,
    result_shape,
)
from sideways_jax.network.module import Module, module_key
from sideways_jax.network.wiring import (
    FRAME,
    Wiring,
    heard,
    input_of,
    shortcut_pairs,
    wiring_of,
)
from sideways_jax.tools.trees import PyTree, shape_of


@dataclasses.dataclass(frozen=True)
class Network:
    """`M_theta = H_D o ... o H_1` (section 3.1): D modules, applied one after the other.

    Parameters and states are tuples of length D, one pytree per module, wherever they appear.

    Args:
      modules: the D modules, from the one that sees the frame to the one that feeds the loss.
      shortcuts: connections that skip modules, pairs `(source, receiver)` of 0-based numbers;
        source -1 is the frame. The input `x` of a receiver is a tuple: what the module below sent,
        then its shortcuts in the order in which they were given; to merge them is its business. In
        a pipeline a shortcut is faster than the main path, so that it brings a newer frame
        (Skip-Sideways, Malinowski et al., CVPR 2021).

    Raises:
      ValueError: without modules, for what is not a `Module`, or for a shortcut that does not skip
        a module upwards, leads out of the network or is there twice.
    """

    modules: Sequence[Module]  # any sequence to make it from; then a tuple
    shortcuts: Sequence = ()  # likewise

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", _as_modules(self.modules))
        if not self.modules:
            raise ValueError("a network needs at least one module, got none")
        pairs = shortcut_pairs(self.shortcuts)
        object.__setattr__(self, "shortcuts", pairs)
        _ = self.wiring  # Shortcuts that cannot be are refused here.

    @functools.cached_property
    def wiring(self) -> Wiring:
        """Who hears whom."""
        return wiring_of(len(self.modules), self.shortcuts)

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
          `(params, state)`, tuples of length D. They are copies, so that a train step to which they
          are donated does not take the buffers of weights that the modules were made from.

        Raises:
          ValueError: if frames have no batch axis, or if a module cannot take what the module below
            it gives, cannot be trained (parameters that are not floating-point arrays, say), or
            gives in training what it does not give in evaluation; see `activation_shapes`.
        """
        sent = {FRAME: shape_of(frame)}
        batch = batch_size(sent[FRAME])
        params, state = [], []
        for i, module in enumerate(self.modules):
            module_key = jax.random.fold_in(key, i)
            x = input_of(self.wiring, i, sent)
            with blame(self._place(i), x):
                initial = pair(module.init(module_key, x), "its init", "(params, state)")
                check_arrays(*initial, train=True)
                sent[i] = checked_output(module, *initial, x, batch, train=True, rng=module_key)
            params.append(jax.tree.map(jnp.copy, initial[0]))
            state.append(jax.tree.map(jnp.copy, initial[1]))
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
        check_tuples(self.depth, params, state)
        sent, new_state = self.apply_group(
            range(self.depth), params, state, {FRAME: frame}, train=train, rng=rng,
            frame_id=frame_id,
        )  # fmt: skip
        return sent[self.depth - 1], new_state

    def apply_group(
        self,
        group: Sequence[int],
        params: tuple,
        state: tuple,
        sent: Mapping[int, PyTree],
        *,
        train: bool,
        rng: jax.Array | None,
        frame_id: jax.Array | int,
    ) -> tuple[dict[int, PyTree], tuple]:
        """The forward pass of one frame through some modules, from below; the rest as in `apply`.

        Args:
          group: their numbers.
          params, state: theirs.
          sent: the frame, and outputs of modules below, as far as these modules hear them.

        Returns:
          `sent` with the outputs of these modules, and their new states.
        """
        sent, new_state = dict(sent), []
        for i, *own in zip(group, params, state, strict=True):
            key, x = module_key(rng, i, frame_id), input_of(self.wiring, i, sent)
            result = self.modules[i].apply(*own, x, train=train, rng=key)
            sent[i], module_state = pair(result, f"apply of module {i}", "(y, new_state)")
            new_state.append(module_state)
        return sent, tuple(new_state)

    def inputs(self, frame: PyTree, activations: Sequence[PyTree]) -> tuple:
        """The input of every module: out of a frame, and what modules 0, 1, ... sent, or shapes."""
        sent = {FRAME: frame} | dict(enumerate(activations))
        return heard(self.wiring, range(self.depth), sent)

    def activation_shapes(
        self,
        params: tuple,
        state: tuple,
        frame: PyTree,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
    ) -> tuple:
        """Shapes and dtypes of `h_1 ... h_D` for a batch of frames, without computing them.

        They are those of evaluation. With `train`, it is checked that they are those of training
        too: the buffers of a pipeline are made before anything is computed.

        Args:
          params, state, frame: arrays, or their shapes.
          train: whether the modules are going to be trained.
          rng: with `train`, a key for those modules that need one.

        Raises:
          ValueError: if frames have no batch axis; if a module cannot take what the module below it
            gives; if its apply does not return a pair, gives something that has no gradient (an
            integer, say) or has no batch axis, or changes the structure, shapes or dtypes of its
            state; and, with `train`, if its parameters have no gradient, or if its output has other
            shapes or dtypes in training than in evaluation.
        """
        check_tuples(self.depth, params, state)
        sent = {FRAME: shape_of(frame)}
        batch = batch_size(sent[FRAME])
        for i, module in enumerate(self.modules):
            x = input_of(self.wiring, i, sent)
            with blame(self._place(i), x):
                check_arrays(params[i], state[i], train=train)
                sent[i] = checked_output(
                    module, params[i], state[i], x, batch, train=train, rng=rng
                )  # fmt: skip
        return tuple(sent[i] for i in range(self.depth))

    def _place(self, i: int) -> str:
        names = ["the frame" if j == FRAME else f"the output of module {j}"
                 for j in self.wiring.sources[i]]  # fmt: skip
        source = names[0] if len(names) == 1 else f"({', '.join(names)})"
        return f"module {i} (0-based, of {self.depth}) fails on {source},"


def sequential(modules: Sequence[Module]) -> Module:
    """Several layers in one module, so that they share a device and a computation step.

    Parameters and state are tuples with one pytree per layer; layer j draws from
    `fold_in(rng, j)`.

    Raises:
      ValueError: without modules, or for what is not a `Module`.
    """
    modules = _as_modules(modules)
    if not modules:
        raise ValueError("sequential needs at least one module, got none")
    if len(modules) == 1:
        return modules[0]

    def init(key: jax.Array, x: PyTree) -> tuple[tuple, tuple]:
        x = shape_of(x)
        params, state = [], []
        for j, module in enumerate(modules):
            with blame(f"layer {j} (0-based, of {len(modules)}) fails on", x):
                initial = module.init(jax.random.fold_in(key, j), x)
                layer_params, layer_state = pair(initial, "its init", "(params, state)")
                x, _ = result_shape(module, layer_params, layer_state, x)
            params.append(layer_params)
            state.append(layer_state)
        return tuple(params), tuple(state)

    def apply(
        params: tuple, state: tuple, x: PyTree, *, train: bool, rng: jax.Array | None
    ) -> tuple[PyTree, tuple]:
        new_state = []
        for j, module in enumerate(modules):
            key = None if rng is None else jax.random.fold_in(rng, j)
            result = module.apply(params[j], state[j], x, train=train, rng=key)
            x, layer_state = pair(result, f"apply of layer {j}", "(y, new_state)")
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


def check_still(network: Network, params: tuple, state: tuple, frame: PyTree) -> None:
    """Refuses modules that change their state in evaluation, where nothing carries it on.

    Args:
      network: D modules.
      params, state: tuples of D pytrees, or their shapes.
      frame: a batch of frames, or its shape.

    Raises:
      ValueError: for a module with a memory; it names the module.
    """
    inputs = network.inputs(shape_of(frame), network.activation_shapes(params, state, frame))
    for i, module in enumerate(network.modules):
        shapes = jax.tree.map(shape_of, (params[i], state[i], inputs[i]))

        def new_state(params: PyTree, state: PyTree, x: PyTree, module: Module = module) -> PyTree:
            return module.apply(params, state, x, train=False, rng=None)[1]

        jaxpr = jax.make_jaxpr(new_state)(*shapes).jaxpr
        first = len(jax.tree.leaves(shapes[0]))
        if list(jaxpr.outvars) != list(jaxpr.invars[first : first + len(jaxpr.outvars)]):
            raise ValueError(
                f"module {i} (0-based, of {network.depth}) changes its state in evaluation, which "
                "pipelined inference does not keep from frame to frame: run network.apply frame by "
                "frame, and hand the state on"
            )


def _as_modules(modules: Sequence[Module]) -> tuple[Module, ...]:
    """The modules as a tuple; ValueError, which says what to do, if some are none."""
    if isinstance(modules, Module) or not isinstance(modules, Iterable):
        raise ValueError(
            f"give a list of modules, [module] for a single one; got a {type(modules).__name__}"
        )
    modules = tuple(modules)
    for i, module in enumerate(modules):
        kind = module if isinstance(module, type) else type(module)
        for family, adapter in (("flax.linen", "from_linen"), ("flax.nnx", "from_nnx")):
            if any(base.__module__.startswith(family) for base in kind.__mro__):
                raise ValueError(
                    f"module {i} (0-based, of {len(modules)}) is {kind.__name__} of Flax: wrap it, "
                    f"sideways_jax.{adapter}({kind.__name__}(...))"
                )
        is_pair = all(callable(getattr(module, name, None)) for name in ("init", "apply"))
        if isinstance(module, type) or not is_pair:
            raise ValueError(
                f"module {i} (0-based, of {len(modules)}) is {module!r}: give a "
                "sideways_jax.Module(init, apply), or what from_linen or from_nnx makes"
            )
    return modules
