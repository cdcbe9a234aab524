"""One module at one computation step; `step.py` puts them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from sideways_jax.network import Module
from sideways_jax.trees import PyTree


class ModuleStep(NamedTuple):
    """What one module gives at one computation step."""

    output: PyTree  # h_i, sent up
    state: PyTree  # of the module, after this step
    grads: PyTree  # pseudo-gradient of the parameters theta_i, Eq. 3
    pseudo_gradient: PyTree  # of the input h_{i-1}, sent down, Eq. 4


def module_step(
    module: Module,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    pseudo_gradient: PyTree | Callable[[PyTree], PyTree],
    *,
    train: bool = True,
    rng: jax.Array | None = None,
) -> ModuleStep:
    """One module, one step: the forward pass, and the vjp at the same input (Eq. 3 and 4).

    Args:
      module: `H_i`.
      params, state: its parameters `theta_i` and its state.
      x: the newest activation `h_{i-1}` from below, `[B, ...]`.
      pseudo_gradient: the newest cotangent of this module's output from above, shaped like the
        output; or a function that makes it from the output, for the top module, whose loss
        gradient is that of the same step.
      train: passed on to the module.
      rng: the key of this module and frame.

    >>> import jax.numpy as jnp
    >>> linear = Module(lambda key, x: (jnp.float32(3.0), ()),
    ...                 lambda params, state, x, *, train, rng: (params * x, state))
    >>> one = module_step(linear, jnp.float32(3.0), (), jnp.float32(2.0), jnp.float32(10.0))
    >>> one.output.item(), one.grads.item(), one.pseudo_gradient.item()
    (6.0, 20.0, 30.0)
    """

    def forward(params, x):
        return module.apply(params, state, x, train=train, rng=rng)

    output, pull_back, new_state = jax.vjp(forward, params, x, has_aux=True)
    if callable(pseudo_gradient):
        pseudo_gradient = pseudo_gradient(output)
    grads, sent_down = pull_back(pseudo_gradient)
    return ModuleStep(output, new_state, grads, sent_down)
