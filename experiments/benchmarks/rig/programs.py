"""Programs that several suites and workers run: the loss, modules alone."""

from __future__ import annotations

import functools
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.rig.measure import seconds_of
from sideways_jax import models
from sideways_jax.rule.in_flight import numbers_of
from sideways_jax.rule.rule import run_group
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import accumulate, wide_zeros


def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy, the mean over the batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def num_layers(model: str) -> int:
    """How many layers a network has, so into how many modules it can be cut at most."""
    return sum(inspect.signature(models.NETWORKS[model]).parameters["cut"].default)


@functools.cache
def initial(network, frame):
    """Parameters and states of a network; cached, since compiling takes seconds."""
    return jax.jit(lambda key: network.init(key, frame))(jax.random.key(0))


def group_alone(network, frame, group, num_frames: int):
    """A function that runs these modules for `num_frames` steps of a pipeline, on one device."""
    params, state = initial(network, frame)
    shapes = (frame, *network.activation_shapes(params, state, frame))
    key = jax.random.key(1)
    inputs = [
        jax.random.uniform(jax.random.fold_in(key, i), shapes[i].shape).astype(shapes[i].dtype)
        for i in group
    ]
    cotangents = [
        jax.random.normal(jax.random.fold_in(key, 100 + i), shapes[i + 1].shape).astype(
            shapes[i + 1].dtype
        )
        for i in group
    ]

    task = Task(network, loss_fn)
    target = jnp.zeros(frame.shape[:1], jnp.int32)
    # Every module has an activation and a gradient, as in the middle of a stream.
    everything = jnp.zeros((network.depth,), jnp.int32)
    numbers = numbers_of(everything, everything, per_example=False)

    def run(params, state, inputs, cotangents):
        def body(carry, scale):
            state, sums, inputs, cotangents = carry
            # New values at every step: XLA would compute a constant step only once.
            below = inputs[0] * scale.astype(inputs[0].dtype)
            above = cotangents[-1] * scale.astype(cotangents[-1].dtype)
            steps = run_group(
                task, group, tuple(params[i] for i in group), state, (below, *inputs[1:]),
                (*cotangents[:-1], above), target, numbers, key,
            )  # fmt: skip
            sums = accumulate(sums, tuple(one.grads for one in steps))
            outputs = tuple(one.output for one in steps)
            down = tuple(one.pseudo_gradient for one in steps)
            kept = (
                jnp.sum(outputs[-1].astype(jnp.float32)[:1]),
                (jnp.sum(down[0].astype(jnp.float32)[:1]) if group[0] else 0.0),
            )
            # Signals move by one module; signals from outside the group stay constant.
            state = tuple(one.state for one in steps)
            inputs, cotangents = (inputs[0], *outputs[:-1]), (*down[1:], cotangents[-1])
            return (state, sums, inputs, cotangents), kept

        sums = wide_zeros(tuple(params[i] for i in group))
        start = tuple(state[i] for i in group), sums, tuple(inputs), tuple(cotangents)
        scales = 1 + 1e-3 * jnp.arange(num_frames, dtype=jnp.float32)
        return jax.lax.scan(body, start, scales)

    arguments = params, state, inputs, cotangents
    return partial(jax.jit(run).lower(*arguments).compile(), *arguments)


def module_costs(network, frame, num_frames: int) -> list[float]:
    """Seconds of each module alone for `num_frames` steps, the best of three."""
    costs = []
    for i in range(network.depth):
        run = group_alone(network, frame, (i,), num_frames)
        seconds_of(run)  # Warms up.
        costs.append(min(seconds_of(run) for _ in range(3)))
    return costs
