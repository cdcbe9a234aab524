"""The door: a model goes in, a network of modules comes out."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sideways_jax.network.checks import batch_size
from sideways_jax.network.module import key_shape
from sideways_jax.splitting.cut_module import Division, make_module
from sideways_jax.splitting.cuts import Cutter, Wish, bytes_at, costs_of
from sideways_jax.splitting.names import Name, names_of, written
from sideways_jax.splitting.original import original
from sideways_jax.splitting.parts import Parts, tree_of
from sideways_jax.splitting.pieces import check_alike, owners
from sideways_jax.splitting.split_network import SplitNetwork
from sideways_jax.splitting.tracing import Mode, Tracer, evaluation_mode
from sideways_jax.tools.names import check_name
from sideways_jax.tools.trees import PyTree, shape_of


def split(
    model: Any,
    frame: PyTree,
    modules: int | None = None,
    *,
    variables: PyTree | None = None,
    key: jax.Array | None = None,
    skips: str = "along",
    carry: Sequence[str] = (),
) -> tuple[SplitNetwork, tuple, tuple]:
    """Cuts an existing model into a network of D modules that together compute the same.

    The model is traced, in training and in evaluation, and each program is cut into D contiguous
    parts: after every call of `sideways_jax.boundary`, or, asked for a number of modules, where
    they cost about the same and few bytes cross. Everything that is needed above a cut travels to
    the next module, a single array or a tuple.

    The batch may have any size. The height and width of frames are those of the example, and so
    are the dtypes. Every module gets a key of its own from the network: random draws have the
    distribution that they have in the model, and masks of other numbers. Loops (`scan`, `while`),
    conditionals, `jax.checkpoint` and functions with derivatives of their own stay in one piece.

    Args:
      model: of Flax, linen or NNX, as it is; or what `from_linen` and `from_nnx` make, where a
        model needs their options; or a `Network`; or a function `(parameters, state, frame, train,
        key) -> (output, new state)`.
      frame: a batch of frames `[B, ...]`, or its `jax.ShapeDtypeStruct`.
      modules: D. None for the places where the model calls `boundary`; with a number these calls
        do nothing.
      variables: what the model starts from: the variables of a linen model (drawn from `key`
        without them), for a function the pair `(parameters, state)`. `network.init` then gives
        copies of them, whatever its key.
      key: of the variables that are drawn, `jax.random.key(0)` by default.
      skips: "along": a value that jumps over a module travels through it, so that the network
        computes in every step what the model computes. "direct": it goes to the module that needs
        it as a shortcut (`Network(shortcuts=...)`), and in a pipeline arrives earlier
        (Skip-Sideways). Concatenations are then made where they are used.
      carry: names of parameters, such as "embed/embedding", that several modules use (tied
        weights). Module 0 has them and sends them up like an activation, a copy for every example.

    Returns:
      `(network, params, state)`, as `network.init` gives them; `network.merge(params, state)` is
      the original's variables again.

    Raises:
      ValueError: for what is no model, for more modules than it can be cut into, and for a boundary
        where it cannot be cut: inside a loop, where a parameter or a state is used on both sides,
        or where an array crosses that has no gradient or no batch axis.

    >>> import jax.numpy as jnp
    >>> from sideways_jax import boundary
    >>> def model(params, state, frame, train, key):
    ...     hidden = boundary(jnp.tanh(frame @ params["one"]))
    ...     return hidden @ params["two"], state
    >>> weights = {"one": jnp.ones((3, 4)), "two": jnp.ones((4, 2))}
    >>> network, params, state = split(model, jnp.ones((1, 3)), variables=(weights, ()))
    >>> [list(module) for module in params]
    [['one'], ['two']]
    """
    check_name("skips", skips, ("along", "direct"))
    frame = shape_of(frame)
    batch = batch_size(frame)
    origin = original(model, variables)
    key = jax.random.key(0) if key is None else key
    values = origin.values or origin.module.init(key, frame)
    shapes = shape_of(values)
    names = [names_of(tree) for tree in shapes]
    carried = tuple(_number(name, names[0]) for name in carry)
    direct = skips == "direct"
    # A name is the identity, and marks a boundary.
    repeat = ("name", "concatenate") if direct else ("name",)
    tracer = Tracer(origin.module, (*shapes, frame), carried, repeat)
    rng = shape_of(key_shape())
    train, evaluation = Mode(True, rng), evaluation_mode(tracer, rng)
    wish = Wish(_count(modules), direct, (*names[0], *names[1]), len(names[0]))
    cutter = Cutter(tracer, wish, train, evaluation)
    owner = _owners(cutter)
    counts = len(names[0])
    parts = Parts(
        len(cutter.first) + 1,
        tree_of("parameter", shapes[0], owner[:counts]),
        tree_of("state", shapes[1], owner[counts:]),
        origin.variables,
    )
    division = Division(origin, cutter, parts, owner, direct, frame)
    pieces, others = (division.pieces(mode, cutter.train.batch) for mode in (train, evaluation))
    check_alike(pieces, others, "evaluation")
    network = SplitNetwork(
        tuple(make_module(division, i) for i in range(parts.depth)),
        tuple((j, i) for i, piece in enumerate(pieces) for j in piece.heard[1:]),
        parts=parts,
        costs=_costs(cutter),
        crossing=tuple(bytes_at(cutter.train, place, batch) for place in cutter.first),
    )
    return network, *jax.tree.map(jax.numpy.copy, parts.divide(*values))


def _count(modules: Any) -> int | None:
    if modules is None:
        return None
    try:
        count = operator.index(modules)
    except TypeError:
        count = 0
    if isinstance(modules, bool) or count < 1:
        raise ValueError(
            f"modules={modules!r} has to be a number of modules, at least 1; or None, to cut where "
            "the model calls sideways_jax.boundary"
        )
    return count


def _number(name: str, names: tuple[Name, ...]) -> int:
    """The number of the parameter with a name."""
    valid = [written(one) for one in names]
    return valid.index(check_name("parameter in carry", name, valid))


def _owners(cutter: Cutter) -> np.ndarray:
    """The module of every leaf; 0 for those that nothing needs."""
    train, evaluation = cutter.train.places, cutter.evaluation.places
    in_train = owners(train.first, cutter.first)
    _, cuts = cutter.cuts(cutter.modes[1], cutter.evaluation.batch)
    in_evaluation = owners(evaluation.first, cuts)
    used, otherwise = train.first < train.program.size, evaluation.first < evaluation.program.size
    return np.where(used, in_train, np.where(otherwise, in_evaluation, 0))


def _costs(cutter: Cutter) -> tuple[float, ...]:
    program = cutter.train.places.program
    costs = costs_of(program)
    bounds = (0, *cutter.first, program.size)
    return tuple(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))
