"""The paper's optimisation (section 4.3), as one optax transformation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from sideways_jax.tools.names import check_name
from sideways_jax.tools.trees import PyTree


def _adam() -> optax.GradientTransformation:
    adam = optax.scale_by_adam()

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # optax raises its decay, a float, to the power of the count, an integer, which fails where
        # jax_numpy_dtype_promotion is strict.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


# The step between clipping and weight decay: u_t = f(c_1 ... c_t).
DIRECTIONS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": lambda momentum: optax.identity(),
    "momentum": lambda momentum: optax.trace(decay=momentum),
    "adam": lambda momentum: _adam(),
    "adamw": lambda momentum: _adam(),  # The decay is decoupled in all of them.
}
COUPLINGS = ("learning_rate", "schedule")


def learning_rate_schedule(
    learning_rate: float,
    *,
    steps_per_epoch: int,
    warmup_epochs: float = 5,
    drop_epochs: Sequence[float] = (100, 200),
    drop_factor: float = 0.1,
    cosine_epochs: float = 0,
) -> optax.Schedule:
    """Linear warm-up from 0, then constant, with drops (section 4.3), or a cosine.

    For the update t = 0, 1, ..., with lr the initial rate and S the steps per epoch:

        lr_t = lr * min(1, t / (warmup_epochs * S)) * drop_factor ** #{e in drop_epochs: t >= e * S}

    so that the first update has the rate 0, and update `warmup_epochs * S` the initial one. With
    `cosine_epochs`, for C = cosine_epochs * S, the rate falls after the W updates of the warm-up,
    instead of the drops:

        lr_t = lr * (1 + cos(pi * min(1, (t - W) / (C - W)))) / 2

    Args:
      learning_rate: the initial rate, reached after the warm-up.
      steps_per_epoch: weight updates in an epoch.
      warmup_epochs: epochs until the initial rate; 0 for no warm-up. May be a fraction.
      drop_epochs: the epochs at whose beginning the rate drops, in increasing order.
      drop_factor: the factor of the rate at each drop.
      cosine_epochs: the epoch at which a rate that falls as a cosine is 0; 0 for drops.

    Returns:
      A function of the number of updates so far; it gives a float32 scalar.

    Raises:
      ValueError: if an argument is out of range, or a drop comes before the end of the warm-up.

    >>> rate = learning_rate_schedule(1e-3, steps_per_epoch=10)
    >>> [round(float(rate(10 * epoch)), 8) for epoch in (0, 1, 5, 99, 100, 199, 200)]
    [0.0, 0.0002, 0.001, 0.001, 0.0001, 0.0001, 1e-05]
    """
    _check_positive("learning_rate", learning_rate)
    if steps_per_epoch < 1:
        raise ValueError(
            f"steps_per_epoch={steps_per_epoch} must be at least 1: use a smaller batch, or more "
            "videos"
        )
    _check_not_negative("warmup_epochs", warmup_epochs)
    _check_positive("drop_factor", drop_factor)
    epochs = (warmup_epochs, *drop_epochs)
    if any(later < earlier for earlier, later in itertools.pairwise(epochs)):
        raise ValueError(
            f"drop_epochs={tuple(drop_epochs)} must be in increasing order and not before the end "
            f"of the warm-up, warmup_epochs={warmup_epochs}"
        )
    if cosine_epochs and cosine_epochs <= warmup_epochs:
        raise ValueError(
            f"cosine_epochs={cosine_epochs} must be after the warm-up, warmup_epochs="
            f"{warmup_epochs}; 0 for drops"
        )
    warmup_steps = warmup_epochs * steps_per_epoch
    cosine_steps = cosine_epochs * steps_per_epoch
    drop_steps = [epoch * steps_per_epoch for epoch in drop_epochs]

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        rate = jnp.full_like(step, learning_rate)
        if warmup_steps:
            rate = rate * jnp.minimum(step / warmup_steps, 1)
        if cosine_steps:
            part = (step - warmup_steps) / (cosine_steps - warmup_steps)
            return rate * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0, 1))) / 2
        for drop_step in drop_steps:
            rate = rate * jnp.where(step >= drop_step, drop_factor, 1.0)
        return rate

    return schedule


def make_optimizer(
    name: str,
    learning_rate: float,
    *,
    steps_per_epoch: int,
    momentum: float = 0.9,
    clip_value: float | None = 1.0,
    weight_decay: float = 0.0,
    decay_coupling: str = "learning_rate",
    warmup_epochs: float = 5,
    drop_epochs: Sequence[float] = (100, 200),
    drop_factor: float = 0.1,
    cosine_epochs: float = 0,
) -> optax.GradientTransformation:
    """The paper's optimizer: clipping by value, a direction, decoupled weight decay, a schedule.

    For the update t = 0, 1, ... of the parameters theta, with the gradient g_t, averaged over the
    computation steps of the episode, and lr_t of `learning_rate_schedule`:

        c_t = min(max(g_t, -clip_value), clip_value)                    element by element
        u_t = c_t                                                       "sgd"
        u_t = momentum * u_{t-1} + c_t                                  "momentum"
        u_t = Adam's direction, with b1 = 0.9, b2 = 0.999, eps = 1e-8   "adam", "adamw"

    with one of two couplings of the weight decay with the learning rate:

        theta <- theta - lr_t * u_t - lr_t * weight_decay * theta          "learning_rate"
        theta <- theta - lr_t * u_t - (lr_t / lr) * weight_decay * theta   "schedule"

    "learning_rate" is AdamW in most libraries (`optax.adamw`, PyTorch): lr scales the decay, too.
    "schedule" is Loshchilov and Hutter's (2019, algorithm 2): only the schedule scales the decay,
    so lr and weight_decay can be searched independently. The paper does not say which coupling it
    uses; its decays, up to 1e-2, are tiny under "learning_rate" with its rates of 1e-4 and 1e-5.
    Decay applies to all parameters.

    Args:
      name: "sgd", "momentum" or "adam"; "adamw" is another name of that.
      learning_rate: lr, the initial rate.
      steps_per_epoch: weight updates in an epoch.
      momentum: of "momentum" alone.
      clip_value: the largest absolute value of an element of the gradient; None: no clipping.
      weight_decay: the coefficient; 0 for none.
      decay_coupling: "learning_rate" or "schedule".
      warmup_epochs, drop_epochs, drop_factor, cosine_epochs: of `learning_rate_schedule`.

    Returns:
      An optax transformation; its `update` needs the parameters.

    Raises ValueError if a name is unknown or a number is out of range.

    >>> tx = make_optimizer("sgd", 0.5, steps_per_epoch=10, warmup_epochs=0, weight_decay=0.1)
    >>> theta = jnp.array([1.0, 2.0])
    >>> updates, _ = tx.update(jnp.array([0.2, -30.0]), tx.init(theta), theta)
    >>> updates  # -0.5 * ([0.2, -1] + 0.1 * [1, 2])
    Array([-0.15,  0.4 ], dtype=float32)

    References:
      Loshchilov and Hutter, Decoupled weight decay regularization, 2019,
      https://arxiv.org/abs/1711.05101
    """
    check_name("optimizer", name, DIRECTIONS)
    check_name("decay_coupling", decay_coupling, COUPLINGS)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1")
    if clip_value is not None:
        _check_positive("clip_value", clip_value, "; None for no clipping")
    _check_not_negative("weight_decay", weight_decay)
    schedule = learning_rate_schedule(
        learning_rate, steps_per_epoch=steps_per_epoch, warmup_epochs=warmup_epochs,
        drop_epochs=drop_epochs, drop_factor=drop_factor, cosine_epochs=cosine_epochs,
    )  # fmt: skip
    decay = weight_decay if decay_coupling == "learning_rate" else weight_decay / learning_rate
    return optax.chain(
        optax.identity() if clip_value is None else optax.clip(clip_value),
        DIRECTIONS[name](momentum),
        optax.add_decayed_weights(decay),  # After the direction: decoupled from it.
        optax.scale_by_learning_rate(schedule),
    )


def _check_positive(name: str, value: float, hint: str = "") -> None:
    if not value > 0:
        raise ValueError(f"{name}={value} must be greater than 0{hint}")


def _check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}={value} must not be negative")
