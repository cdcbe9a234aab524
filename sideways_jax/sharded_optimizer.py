"""The optimiser where the parameters are: each device updates its own modules.

An optax transformation wants the whole tree. A device shows it one in which the parameters of other
devices are stood in for: every leaf by an array with one element and as many axes, so that masks
and labels by name or rank fit; and that element is, of a gradient, the L2 norm of the leaf. What
works leaf by leaf does not look at it, and a global norm comes out right, since the norm of norms
is the norm. Anything else would be silently different, so it is refused: `check_local` tries.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


def check_local(tx: optax.GradientTransformation, shapes: tuple, groups: Groups) -> None:
    """Refuses a transformation that gives another update when it runs sharded.

    It is tried on small random parameters of the same structure, with small and large gradients:
    the updates of each device's modules have to be those that the whole tree gives.

    Raises:
      ValueError: if they are not.
    """
    if len(groups) > 1:
        with jax.ensure_compile_time_eval():  # `init` and `train_step` may be being traced.
            _check_local(tx, shapes, groups)


def _check_local(tx: optax.GradientTransformation, shapes: tuple, groups: Groups) -> None:
    small = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(tuple(min(n, 3) for n in x.shape), x.dtype), shapes
    )
    generator = np.random.default_rng(0)

    def draw(scale):
        return jax.tree.map(
            lambda x: jnp.asarray(scale * generator.standard_normal(x.shape), x.dtype), small
        )

    params = draw(1.0)
    steps = [draw(scale) for scale in (1e-2, 1.0, 1e3)]
    whole = _updates(tx, params, steps, lambda gradients: gradients)
    for group in groups:

        def seen(gradients, group=group):
            own = {i: gradients[i] for i in group}
            return view(own, stand_ins(small, norms(gradients)))

        try:
            local = _updates(tx, view({i: params[i] for i in group}, stand_ins(small)), steps, seen)
            same = all(
                np.allclose(a, b, rtol=1e-4, atol=1e-6 * (1 + np.abs(a).max(initial=0)))
                for one, other in zip(whole, local, strict=True)
                for i in group
                for a, b in zip(jax.tree.leaves(one[i]), jax.tree.leaves(other[i]), strict=True)
            )
        except (TypeError, ValueError) as error:
            raise ValueError(_REFUSED) from error
        if not same:
            raise ValueError(_REFUSED)


_REFUSED = (
    "this optimiser gives other updates when every device holds only its own modules: something in "
    "it looks at the parameters of all modules at once. What works leaf by leaf does not, nor does "
    "optax.clip_by_global_norm in first place of the chain. Use those, or another execution"
)


def _updates(
    tx: optax.GradientTransformation, params: tuple, steps: list, seen: Callable
) -> list[tuple]:
    state, result = tx.init(params), []
    for gradients in steps:
        updates, state = tx.update(seen(gradients), state, params)
        result.append(updates)
    return result
