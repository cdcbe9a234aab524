"""The optimiser where the parameters are: each device updates its own modules.

An optax transformation wants the whole tree. A device shows it one in which the parameters of other
devices are stood in for: every leaf by an array with one element and as many axes, so that masks
and labels by name or rank fit; and that element is, of a gradient, the L2 norm of the leaf. What
works leaf by leaf does not look at it, and a global norm comes out right, since the norm of norms
is the norm. Anything else would be silently different, so `check_local` refuses it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from sideways_jax.hold_back import owners
from sideways_jax.jaxprs import inline_jit
from sideways_jax.placement import Groups
from sideways_jax.trees import PyTree


def norms(modules: tuple) -> tuple:
    """The L2 norm of every leaf, in float32 at least."""

    def norm(x):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x.astype(wide)))))

    return jax.tree.map(norm, modules)


def view(own: dict[int, PyTree], others: tuple) -> tuple:
    """The whole tree as one device sees it.

    Args:
      own: the pytrees of the modules of this device, by number.
      others: for all D modules pytrees of the stand-ins.
    """
    return tuple(own.get(i, other) for i, other in enumerate(others))


def stand_ins(shapes: tuple, values: tuple | None = None) -> tuple:
    """A stand-in with one element for every leaf: its norm out of `values`, or zero."""

    def one(shape, value):
        return jnp.full((1,) * len(shape.shape), 1, shape.dtype) * value.astype(shape.dtype)

    if values is None:
        values = jax.tree.map(lambda shape: jnp.zeros((), shape.dtype), shapes)
    return jax.tree.map(one, shapes, values)


def check_local(tx: optax.GradientTransformation, params: tuple, groups: Groups) -> None:
    """Refuses a transformation that could give other updates when it runs sharded.

    Read off its jaxpr, nothing is run: values that come from different modules may meet only as
    sums of squares of whole gradients, those that the stand-ins have the right norm for.

    Args:
      tx: the transformation.
      params: shapes of the parameters of D modules.
      groups: the modules of every device.

    Raises:
      ValueError: if they meet in another way.
    """
    if len(groups) == 1:
        return
    whole = jax.tree.structure(jax.eval_shape(tx.init, params))
    for group in groups:
        own = {i: params[i] for i in group}
        seen = view(own, jax.eval_shape(lambda: stand_ins(params)))
        if jax.tree.structure(jax.eval_shape(tx.init, seen)) != whole:
            raise ValueError(_REFUSED.format("the structure of its state depends on shapes"))

    opt_state = jax.eval_shape(tx.init, params)
    closed = inline_jit(jax.make_jaxpr(tx.update)(params, opt_state, params))
    modules = [i for i, module in enumerate(params) for _ in jax.tree.leaves(module)]
    owner = jax.tree.leaves(owners(tx, params), is_leaf=lambda x: x is None)
    comes_from = {  # which modules a value depends on
        v: frozenset() if i is None else frozenset((i,))
        for v, i in zip(closed.jaxpr.invars, [*modules, *owner, *modules], strict=True)
    }
    kinds = dict.fromkeys(closed.jaxpr.invars[: len(modules)], "gradient")
    for eqn in closed.jaxpr.eqns:
        met = frozenset().union(
            *(comes_from.get(v, frozenset()) for v in eqn.invars if isinstance(v, core.Var))
        )
        kind = _kind(eqn, kinds)
        if kind == "norm":
            met = frozenset()  # Every device knows it, by the stand-ins.
        if len(met) > 1:
            raise ValueError(
                _REFUSED.format(f"modules {sorted(met)} meet in {eqn.primitive.name!r}")
            )
        comes_from |= dict.fromkeys(eqn.outvars, met)
        kinds |= dict.fromkeys(eqn.outvars, kind)


def _kind(eqn: core.JaxprEqn, kinds: dict) -> str | None:
    """What a value is on its way from gradients to their norm, None if it leaves that way.

    "gradient", one of them as it came; "square", of every element; "norm", a sum of such squares
    over whole gradients, of one leaf or more; "zero".
    """
    name = eqn.primitive.name
    inputs = [
        ("zero" if v.val == 0 else None) if isinstance(v, core.Literal) else kinds.get(v)
        for v in eqn.invars
    ]
    if name in ("convert_element_type", "copy", "broadcast_in_dim"):
        return inputs[0] if name != "broadcast_in_dim" or inputs[0] == "zero" else None
    is_square = name == "square" or (name == "integer_pow" and eqn.params["y"] == 2)
    if is_square or (name == "mul" and eqn.invars[0] is eqn.invars[1]):
        return {"gradient": "square", "zero": "zero"}.get(inputs[0])
    if name == "reduce_sum" and not eqn.outvars[0].aval.shape:
        return {"square": "norm", "zero": "zero"}.get(inputs[0])
    if name in ("add", "add_any"):
        parts = set(inputs) - {"zero"} or {"zero"}
        return parts.pop() if parts in ({"square"}, {"norm"}, {"zero"}) else None
    return None


_REFUSED = (
    "this optimiser may give other updates when every device holds only its own modules: {}. "
    "Transformations that work leaf by leaf do not, nor does optax.clip_by_global_norm (or "
    "anything else that uses the global norm) of the gradients as they come, so in first place of "
    "the chain. Use those, or execution='scan' or 'time_parallel'"
)
