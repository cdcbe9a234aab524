"""Training of short runs, whose programs are compiled once for all seeds, rates and scenes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from experiments.evidence.training.clips import Batch
from experiments.evidence.training.optimizer import recording, settable, with_settings
from experiments.jobs.classification import scores
from experiments.jobs.classification.losses import accuracy
from sideways_jax import Network, models, step

CLASSES = 10
UPDATES = {"simple_cnn": 600, "vgg8": 300}  # of the short studies
CURVES = ("loss", "accuracy", "mean of gradients", "norm of gradients")
NETWORKS: Mapping[str, Callable[[float], Network]] = {
    # The paper's, with a quarter of the channels.
    "simple_cnn": lambda dropout: models.simple_cnn(CLASSES, widths=(8, 16, 16, 32, 64)),
    # The paper's, with an eighth of the channels, and a sixteenth of the hidden units.
    "vgg8": lambda dropout: models.vgg8(
        CLASSES, widths=(12, 32, 64, 64, 64), hidden=(256, 128), dropout_rate=dropout
    ),
    "smoke": lambda dropout: models.simple_cnn(CLASSES, widths=(4, 4), cut=(1,) * 3),
}


class Recipe(NamedTuple):
    """What a program is compiled for."""

    network: str  # of `NETWORKS`
    rule: str
    dropout: float = 0.0  # of VGG-8
    smoothing: float = 0.0  # of labels
    target: str = "stream"  # or "origin", for clips whose frames have labels of their own


class Learned(NamedTuple):
    """The result of a run."""

    params: tuple
    state: tuple
    curves: dict[str, list[float]]  # of training, by `CURVES`, an entry for every update


class Tested(NamedTuple):
    """What the network says of test videos, from the mean logits of their frames."""

    probabilities: np.ndarray  # [V, C]
    labels: np.ndarray  # [V]

    @property
    def accuracy(self) -> float:
        """The fraction of right predictions."""
        return scores.accuracy(*self)

    @property
    def nll(self) -> float:
        """The negative log-likelihood, nats."""
        return scores.negative_log_likelihood(*self)

    @property
    def ece(self) -> float:
        """The expected calibration error."""
        return scores.calibration_error(*self)


def network_of(recipe: Recipe) -> Network:
    """The network, one and the same for one recipe."""
    return _network(recipe.network, recipe.dropout)


@functools.cache
def _network(name: str, dropout: float) -> Network:
    return NETWORKS[name](dropout)


def loss_of(recipe: Recipe) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The cross-entropy of one computation step, with smoothed labels."""

    def loss_fn(logits: jax.Array, label: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(label, CLASSES, dtype=logits.dtype)
        smooth = optax.smooth_labels(one_hot, recipe.smoothing)
        return optax.softmax_cross_entropy(logits, smooth).mean()

    return loss_fn


def learn(
    recipe: Recipe,
    batches: Iterator[Batch],
    *,
    rate: float,
    decay: float = 0.0,
    seed: int,
    updates: int,
    looks: Sequence[int] = (),
    look: Callable[[int, tuple, tuple], None] | None = None,
) -> Learned:
    """Trains with Adam, an update for every batch; the first tenth is a warm-up.

    Args:
      recipe: what is trained, and how.
      batches: clips.
      rate, decay: of the optimizer.
      seed: of the parameters and of dropout.
      updates: how many.
      looks, look: `look(n, params, state)` is called after n updates, for every n of `looks`.
    """
    init, train_on = _training(recipe)
    steps, train_state, metrics = iter(itertools.islice(batches, updates)), None, []
    for n, batch in enumerate(steps):
        frames, label = batch["frames"], batch["label"]
        if train_state is None:
            train_state = init(jax.random.key(seed), frames[:, 0])
            statistics, optimizer = train_state.opt_state
            optimizer = with_settings(optimizer, rate, decay, max(1, updates // 10))
            train_state = train_state._replace(opt_state=(statistics, optimizer))
            if 0 in looks and look is not None:
                look(0, train_state.params, train_state.state)
        train_state, measured = train_on(train_state, frames, label)
        metrics.append(measured)
        if n + 1 in looks and look is not None:
            look(n + 1, train_state.params, train_state.state)
    assert train_state is not None, f"updates={updates}: at least 1"
    rows = np.asarray(jax.device_get(metrics), np.float64).T
    curves = {name: row.tolist() for name, row in zip(CURVES, rows, strict=True)}
    return Learned(train_state.params, train_state.state, curves)


def by_time(batch_frames: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frames `[K, B, ...]` and targets `[K, B]` of a batch."""
    frames = batch_frames.swapaxes(0, 1)
    if label.ndim == 2:
        return frames, label.swapaxes(0, 1)
    return frames, jnp.broadcast_to(label[None], frames.shape[:2])


@functools.cache
def _training(recipe: Recipe) -> tuple[Callable, Callable]:
    init, train_step = step.make_train_step(
        network_of(recipe),
        loss_of(recipe),
        optax.chain(recording(), settable("adam")),
        rule=recipe.rule,
        execution="time_parallel",
        target=recipe.target,
        metrics_fn=lambda logits, label: {"accuracy": accuracy(logits, label)},
    )

    def train_on(train_state, frames, label):
        train_state, metrics = train_step(train_state, *by_time(frames, label))
        statistics, _ = train_state.opt_state
        return train_state, jnp.stack(
            [metrics["loss"], metrics["accuracy"], statistics.mean, statistics.norm]
        )

    return jax.jit(init), jax.jit(train_on)


@functools.cache
def operations(recipe: Recipe, shape: tuple[int, ...]) -> float:
    """Floating-point operations of an update on frames `[B, K, H, W, 3]` of this shape.

    The compiler counts them before it optimises; nothing is run.
    """
    init, train_on = _training(recipe)
    frames = jax.ShapeDtypeStruct(shape, jnp.uint8)
    frame = jax.ShapeDtypeStruct((shape[0], *shape[2:]), jnp.uint8)
    train_state = jax.eval_shape(init, jax.random.key(0), frame)
    label = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return float((train_on.lower(train_state, frames, label).cost_analysis() or {})["flops"])


def test(recipe: Recipe, params: tuple, state: tuple, batches: Sequence[Batch]) -> Tested:
    """Tests frame by frame, synchronously; a clip has one prediction."""
    predict = _predicting(recipe.network, recipe.dropout)
    logits, labels = [], []
    for batch in batches:
        real = batch["label"] >= 0
        logits.append(np.asarray(predict(params, state, batch["frames"]), np.float64)[real])
        labels.append(batch["label"][real])
    mean = np.concatenate(logits)
    return Tested(special.softmax(mean, axis=1), np.concatenate(labels))


@functools.cache
def _predicting(name: str, dropout: float) -> Callable:
    network = _network(name, dropout)

    @jax.jit
    def predict(params, state, frames):
        def logits(frame):
            return network.apply(params, state, frame, train=False)[0]

        return jax.lax.map(logits, frames.swapaxes(0, 1)).mean(0)

    return predict
