"""What of a traced function depends on which of its inputs."""

import jax
import jax.numpy as jnp
import pytest

from sideways_jax.tools.programs import dependent, inline_calls, same


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


def _function(first=jnp.sin, step=jnp.multiply, table=(1.0, 2.0), **options):
    def run(x, y):
        total, _ = jax.lax.scan(lambda c, z: (step(c, z), z), y, x, **options)
        return first(x) - total * jnp.asarray(table)

    return run


def _with_other_names(a, b):
    unused = jnp.cos(a) * b
    del unused
    table = jnp.asarray((1.0, 2.0))
    total, _ = jax.lax.scan(lambda total, one: (total * one, one), b, a)
    return jax.jit(lambda u, v: jnp.sin(u) - v * table)(a, total)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (_with_other_names, True),
        (_function(jnp.cos), False),
        (_function(step=jnp.add), False),
        (_function(step=lambda c, z: z * c), False),  # The order of operands.
        (_function(table=(1.0, 3.0)), False),  # A constant.
        (_function(reverse=True), False),  # A parameter.
        (lambda x, y: _function()(x, y) * 2, False),  # One more equation.
    ],
)
def test_which_functions_are_the_same(other, expected):
    shapes = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    one, two = (jax.make_jaxpr(function)(*shapes) for function in (_function(), other))
    assert same(one, two) is expected
