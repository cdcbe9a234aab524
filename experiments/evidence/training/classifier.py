"""Trains a network on clips of moving digits by one of the rules, and tests it on other digits."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from data import Source, load
from experiments.jobs.classification.losses import cross_entropy
from sideways_jax import Network, step, stream


def trained_accuracy(
    network: Network, rule: str, data: ConfigDict, *, rate: float, seed: int, updates: int
) -> float:
    """The accuracy after so many updates of Adam, each after a clip.

    A clip has one prediction: the mean of the logits of all its frames that get out, of a pipeline
    for the rules that have one, so that shortcuts bring the frames that they brought in training.

    Args:
      network: of logits.
      rule: of `step.make_train_step`.
      data: of `data.load`.
      rate: of Adam, constant.
      seed: of parameters and clips.
      updates: how many.
    """
    source = load(data, seed=seed)
    init, train_step = step.make_train_step(
        network, cross_entropy, optax.adam(rate), rule=rule, execution="time_parallel"
    )

    @jax.jit
    def train_on(train_state, frames, label):
        frames = frames.swapaxes(0, 1)
        return train_step(train_state, frames, jnp.broadcast_to(label, frames.shape[:2]))[0]

    frame = jax.ShapeDtypeStruct((data.batch_size, data.size, data.size, 3), jnp.uint8)
    train_state = jax.jit(lambda key: init(key, frame))(jax.random.key(seed))
    batches = iter(source.train)
    try:
        for batch in itertools.islice(batches, updates):
            train_state = train_on(train_state, batch["frames"], batch["label"])
    finally:
        batches.close()
    return _accuracy(network, rule, train_state.params, train_state.state, source)


def _accuracy(network: Network, rule: str, params: tuple, state: tuple, source: Source) -> float:
    predict = jax.jit(_synchronous if rule == "backprop" else _pipelined, static_argnums=0)
    correct = []
    for batch in source.test():
        logits = predict(network, params, state, batch["frames"].swapaxes(0, 1))
        real = batch["mask"].all(axis=1)  # Whole clips; rows that fill up a batch are none.
        correct.append((np.asarray(logits).argmax(-1) == batch["label"])[real])
    return float(np.concatenate(correct).mean())


def _synchronous(network: Network, params: tuple, state: tuple, frames: jax.Array) -> jax.Array:
    """Mean logits `[B, classes]` of frames `[K, B, ...]`, each on its own."""

    def logits(frame):
        return network.apply(params, state, frame, train=False)[0]

    return jax.lax.map(logits, frames).mean(0)


def _pipelined(network: Network, params: tuple, state: tuple, frames: jax.Array) -> jax.Array:
    """Likewise, of the frames that get out of the pipeline."""
    reset = jnp.zeros(frames.shape[:2], bool)
    pipeline = stream.init_pipeline(network, params, state, frames[0])
    _, outputs = stream.pipelined_outputs(network, params, state, pipeline, frames, reset)
    return outputs.outputs[network.depth - 1 :].mean(0)
