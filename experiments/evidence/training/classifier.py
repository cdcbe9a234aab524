"""Trains a network on clips of moving digits by one of the rules, and tests it on other digits."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from data import Source, load
from experiments.evidence.training import tsm
from experiments.evidence.training.learner import Learner
from experiments.jobs.classification.losses import cross_entropy
from sideways_jax import Network, step, stream
from sideways_jax.training import delayed_optimizer


def trained_accuracy(
    network: Network,
    rule: str,
    data: ConfigDict,
    *,
    rate: float,
    seed: int,
    updates: int,
    slower: float = 0.0,
) -> float:
    """The accuracy after so many updates of Adam, each after a clip.

    A clip has one prediction: the mean of the logits of all its frames that get out, of a pipeline
    for the rules that have one, so that shortcuts bring the frames that they brought in training.

    Args:
      network: of logits.
      rule: of `step.make_train_step`, or "tsm".
      data: of `data.load`.
      rate: of Adam, constant.
      seed: of parameters and clips.
      updates: how many.
      slower: the power of `delayed_optimizer.scale_by_delay`; 0 for one rate in all modules.
    """
    source = load(data, seed=seed)
    tx = optax.adam(rate)
    if slower:
        delays = delayed_optimizer.delays_of(network)
        tx = optax.chain(tx, delayed_optimizer.scale_by_delay(delays, slower))
    learner = tsm.make_learner(network, tx) if rule == "tsm" else _by_rule(network, rule, tx)

    @jax.jit
    def train_on(learned, frames, label):
        return learner.train_on(learned, frames.swapaxes(0, 1), label)

    frame = jax.ShapeDtypeStruct((data.batch_size, data.size, data.size, 3), jnp.uint8)
    learned = jax.jit(lambda key: learner.init(key, frame))(jax.random.key(seed))
    batches = iter(source.train)
    try:
        for batch in itertools.islice(batches, updates):
            learned = train_on(learned, batch["frames"], batch["label"])
    finally:
        batches.close()
    return _accuracy(learner, learned, source)


def _accuracy(learner: Learner, learned: Any, source: Source) -> float:
    predict = jax.jit(learner.predict)
    correct = []
    for batch in source.test():
        logits = predict(learned, batch["frames"].swapaxes(0, 1))
        real = batch["mask"].all(axis=1)  # Whole clips; rows that fill up a batch are none.
        correct.append((np.asarray(logits).argmax(-1) == batch["label"])[real])
    return float(np.concatenate(correct).mean())


def _by_rule(network: Network, rule: str, tx: optax.GradientTransformation) -> Learner:
    init, train_step = step.make_train_step(
        network, cross_entropy, tx, rule=rule, execution="time_parallel"
    )

    def train_on(train_state, frames, label):
        return train_step(train_state, frames, jnp.broadcast_to(label, frames.shape[:2]))[0]

    def predict(train_state, frames):
        show = _synchronous if rule == "backprop" else _pipelined
        return show(network, train_state.params, train_state.state, frames)

    return Learner(init, train_on, predict)


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
