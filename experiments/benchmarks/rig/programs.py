"""What several suites and their workers run: the loss, modules alone, and how a worker answers."""

from __future__ import annotations

import functools
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax
from sideways_jax.module_step import module_step

from sideways_jax.trees import zeros


def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy, the mean over the batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def initial(network, frame):
    """Parameters and states of a network; compiled once, which takes seconds."""
    return jax.jit(lambda key: network.init(key, frame))(jax.random.key(0))


def group_alone(network, frame, group, num_frames: int):
    """A function that runs some modules for so many steps, as in a pipeline, on one device."""
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

    def run(params, state, inputs, cotangents):
        def body(carry, scale):
            state, sums, inputs, cotangents = carry
            # Something new at every step: XLA would compute what stays the same only once.
            inputs = [inputs[0] * scale.astype(inputs[0].dtype), *inputs[1:]]
            cotangents = [*cotangents[:-1], cotangents[-1] * scale.astype(cotangents[-1].dtype)]
            steps = [
                module_step(network.modules[i], params[i], state[j], inputs[j], cotangents[j],
                            rng=key)
                for j, i in enumerate(group)
            ]  # fmt: skip
            sums = [jax.tree.map(jnp.add, s, one.grads) for s, one in zip(sums, steps, strict=True)]
            outs = [one.output for one in steps], [one.pseudo_gradient for one in steps]
            # Signals move by one module; what comes from outside the group stays as it was.
            inputs = [inputs[0], *outs[0][:-1]]
            cotangents = [*outs[1][1:], cotangents[-1]]
            kept = (
                jnp.sum(outs[0][-1].astype(jnp.float32)[:1]),
                (jnp.sum(outs[1][0].astype(jnp.float32)[:1]) if group[0] else 0.0),
            )
            return ([one.state for one in steps], sums, inputs, cotangents), kept

        sums = [zeros(params[i]) for i in group]
        start = [state[i] for i in group], sums, inputs, cotangents
        scales = 1 + 1e-3 * jnp.arange(num_frames, dtype=jnp.float32)
        return jax.lax.scan(body, start, scales)

    arguments = params, state, inputs, cotangents
    return partial(jax.jit(run).lower(*arguments).compile(), *arguments)


def module_costs(network, frame, num_frames: int) -> list[float]:
    """Seconds of each module alone for so many steps, the best of three."""
    costs = []
    for i in range(network.depth):
        run = group_alone(network, frame, (i,), num_frames)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - start)
        costs.append(min(seconds[1:]))
    return costs


def tell(result: dict) -> None:
    """Prints what a worker measured, for `rig.measure`; process 0 does."""
    if jax.process_index() == 0:
        print("RESULT " + json.dumps(result), flush=True)
