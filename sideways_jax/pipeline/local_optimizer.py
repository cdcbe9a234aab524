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

from sideways_jax.devices.placement import Groups
from sideways_jax.tools.jaxprs import inline_jit
from sideways_jax.tools.trees import PyTree
from sideways_jax.training.hold_back import owners


def norms(modules: tuple) -> tuple:
    """The L2 norm of every leaf, in float32 at least."""

    def norm(x):
        wide = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
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


def check_local(tx: optax.GradientTransformation, params: tuple, groups: Groups) -> PyTree:
    """Refuses a transformation that could give other updates when it runs sharded.

    Read off its jaxpr, nothing is run: values that come from different modules may meet only as
    sums of squares of whole gradients, those that the stand-ins have the right norm for. A number
    that depends on the shapes of a module, such as the size that a mean divides by, comes from it.

    Args:
      tx: the transformation.
      params: shapes of the parameters of D modules.
      groups: the modules of every device.

    Returns:
      A pytree like `tx.init(params)`: the module that each leaf belongs to, None for what is the
      same on all devices.

    Raises:
      ValueError: if they meet in another way.
    """
    if len(groups) == 1:
        return owners(tx, params)
    whole = jax.eval_shape(tx.init, params)
    structure = jax.tree.structure(whole)
    for group in groups:
        seen = view({i: params[i] for i in group}, jax.eval_shape(lambda: stand_ins(params)))
        if jax.tree.structure(jax.eval_shape(tx.init, seen)) != structure:
            raise ValueError(_REFUSED.format("the structure of its state depends on shapes"))

    program = _trace(tx, params)
    sizes = _depends_on_shapes(program, tx, params)
    modules = [i for i, module in enumerate(params) for _ in jax.tree.leaves(module)]
    owner = _owners_by_shape(tx, params)
    while True:  # What a module writes into the state at one update, others may read at the next.
        results = _comes_from(program, sizes, modules, owner)
        for place, one in zip([*modules, *owner], results, strict=True):
            if place is not None and one - {place}:
                raise ValueError(_REFUSED.format(f"modules {sorted(one)} reach module {place}"))
        written = [
            next(iter(one)) if place is None and one else place
            for place, one in zip(owner, results[len(modules) :], strict=True)
        ]
        if written == owner:
            return jax.tree.unflatten(structure, owner)
        owner = written


def _trace(tx: optax.GradientTransformation, params: tuple) -> core.ClosedJaxpr:
    return inline_jit(jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params))


def _owners_by_shape(tx: optax.GradientTransformation, params: tuple) -> list[int | None]:
    """`owners`, and what has another shape when module i is stood in for belongs to it as well."""
    whole = jax.tree.leaves(jax.eval_shape(tx.init, params))
    owner = jax.tree.leaves(owners(tx, params), is_leaf=lambda x: x is None)
    stood_in = jax.eval_shape(lambda: stand_ins(params))
    for i in range(len(params)):
        seen = (*params[:i], stood_in[i], *params[i + 1 :])
        leaves = jax.tree.leaves(jax.eval_shape(tx.init, seen))
        for k, (before, after) in enumerate(zip(whole, leaves, strict=True)):
            if before.shape != after.shape:
                owner[k] = i
    return owner


def _comes_from(
    program: core.ClosedJaxpr, sizes: dict, modules: list[int], owner: list[int | None]
) -> list[frozenset]:
    """For every result of `tx.update`, the modules it depends on in a way others do not know."""
    jaxpr = program.jaxpr
    known = dict(sizes)
    for v, i in zip(jaxpr.invars, [*modules, *owner, *modules], strict=True):
        known[v] = frozenset() if i is None else frozenset((i,))
    kinds = dict.fromkeys(jaxpr.invars[: len(modules)], "gradient")

    def of(v):
        return known.get(v, frozenset()) if isinstance(v, core.Var) else frozenset()

    for number, eqn in enumerate(jaxpr.eqns):
        met = sizes.get(number, frozenset()).union(*map(of, eqn.invars))
        kind = _kind(eqn, kinds)
        if kind == "norm":
            met = frozenset()  # Every device knows it, by the stand-ins.
        if len(met) > 1:
            raise ValueError(
                _REFUSED.format(f"modules {sorted(met)} meet in {eqn.primitive.name!r}")
            )
        known |= dict.fromkeys(eqn.outvars, met)
        kinds |= dict.fromkeys(eqn.outvars, kind)
    return [of(v) for v in jaxpr.outvars]


def _depends_on_shapes(
    program: core.ClosedJaxpr, tx: optax.GradientTransformation, params: tuple
) -> dict:
    """The modules whose shapes an equation (by its number) or a constant depends on.

    Found out by tracing again with other shapes for one module after the other.
    """
    sizes: dict[int | core.Var, frozenset] = {}
    expected = _described(program)
    constants = program.jaxpr.constvars
    for i, module in enumerate(params):
        larger = jax.tree.map(_larger, module)
        try:
            other = _described(_trace(tx, (*params[:i], larger, *params[i + 1 :])))
        except ValueError:  # A state that knows the shapes, say: its parts do not fit.
            other = []
        if [one[0] for one in other] != [one[0] for one in expected]:
            raise ValueError(_REFUSED.format(f"its program depends on the shapes of module {i}"))
        for number, (a, b) in enumerate(zip(expected, other, strict=True)):
            if a != b:
                place = number - len(constants)
                place = constants[number] if place < 0 else place
                sizes[place] = sizes.get(place, frozenset()) | {i}
    return sizes


def _larger(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # Axes of length 1 are that in stand-ins too, and code may well ask for them.
    return jax.ShapeDtypeStruct(tuple(n if n == 1 else n + 1 for n in x.shape), x.dtype)


def _described(program: core.ClosedJaxpr) -> list[tuple]:
    """Constants and equations: what must agree for two programs to be one, and what may differ."""
    numbers: dict[core.Var, int] = {}
    for v in (*program.jaxpr.constvars, *program.jaxpr.invars):
        numbers[v] = len(numbers)
    described = [(("constant",), str(value)) for value in program.consts]
    for eqn in program.jaxpr.eqns:
        inputs = tuple(numbers[v] if isinstance(v, core.Var) else None for v in eqn.invars)
        literals = [str(v.val) for v in eqn.invars if isinstance(v, core.Literal)]
        options = {name: str(value) for name, value in eqn.params.items() if not callable(value)}
        described.append(((eqn.primitive.name, inputs), (literals, options)))
        for v in eqn.outvars:
            numbers[v] = len(numbers)
    return described


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
