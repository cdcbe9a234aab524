"""What of a traced function depends on which of its inputs."""

import jax
import jax.numpy as jnp
import pytest

from sideways_jax.tools.programs import dependent, inline_calls


def _scanned(x, y):
    """A carry that counts, one that hears of `x` a step late, and one that adds up `x`."""

    def body(carry, x):
        count, _, total = carry
        return (count + 1, total, total + x), count

    (count, late, total), counts = jax.lax.scan(body, (y, y, y), x)
    return count, late, total, counts


def _conditional(x, y):
    return jax.lax.cond(x[0] > 0, lambda: (y, 2 * y), lambda: (y + 1, y)), y


CASES = {
    "shapes alone": (lambda x, y: (jnp.zeros(x.shape) + y, x.shape[0] * y), [False, False]),
    "a scan": (_scanned, [False, True, True, False]),
    "a conditional": (_conditional, [True, True, False]),
    "calls": (lambda x, y: jax.jit(jax.checkpoint(lambda x, y: (jnp.sin(x), y)))(x, y),
              [True, False]),
    "a call in a scan": (
        lambda x, y: jax.lax.scan(lambda c, x: (jax.jit(lambda c: c + 1)(c), x), y, x),
        [False, True],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_depends_on_the_first_input(name):
    function, expected = CASES[name]
    program = inline_calls(jax.make_jaxpr(function)(jnp.ones(3), jnp.float32(1)))
    assert dependent(program, program.inputs[:1]) == expected
