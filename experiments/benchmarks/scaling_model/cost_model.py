"""The predicted time of a clip on N devices, from the costs of modules, links and steps.

Nothing is measured here. The library's clock tables (`sideways_jax/rule/schedules.py`) say which
device works on what at which step, `sideways_jax/devices/module_groups.py` says which modules a
device has, and the model simulates it:

* at a step a device works for as long as its modules take (`step_seconds`);
* then it exchanges signals with its neighbours, both ways, and starts the next step when they have
  finished this one (`play`): there is no barrier of all devices, and nothing overlaps, as in the
  library. `exchange = messages * (latency + bytes * seconds_per_byte)` for one message up and one
  down, one after the other; two devices send one message, one device none. All messages are as long
  as the longest (the library pads them); links of different neighbours are independent;
* the library adds `per_step` to every step, and time for every byte of parameters and of
  activations on the device with the most (`held_bytes`; it stands for copies, and is fitted, not
  counted); an update adds `per_update`.

So on equal devices with a cost c of the largest group, both passes, and C of all of them together,
with x = exchange + overhead of a step, and K frames:

    Sideways   K (c + x)
    blocking   K (C + (2N-1) x)
    1f1b       (K+N-1) c + (K+2N-2) x               if all groups cost the same
    gpipe      (K+N-1) (c + forward) + (2K+2N-3) x  the same; it runs the forward pass again

plus `per_update`. With N = D = 1 all of them (gpipe apart) take K (c + x).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from sideways_jax.devices import module_groups
from sideways_jax.devices.module_groups import Groups
from sideways_jax.rule import schedules

RULES = ("sideways", *schedules.SCHEDULES)


class Modules(NamedTuple):
    """D modules."""

    forward: tuple[float, ...]  # seconds of the forward pass of a frame batch
    both: tuple[float, ...]  # seconds of the forward pass and the vjp
    signal_bytes: tuple[int, ...]  # of the activation that each module sends up, D - 1
    param_bytes: tuple[int, ...]

    @property
    def depth(self) -> int:
        """D."""
        return len(self.both)


class Link(NamedTuple):
    """The cost of a message to a neighbour."""

    latency: float  # seconds
    seconds_per_byte: float


class Overhead(NamedTuple):
    """The time that the library adds to the modules' work and to the messages."""

    per_step: float  # seconds
    per_param_byte: float  # seconds per step, for the parameters of a device's modules
    per_signal_byte: float  # seconds per step, for the activations that they send
    per_update: float  # seconds


class Prediction(NamedTuple):
    """The time of a clip of K frames and its update."""

    seconds: float
    groups: Groups
    ideal_speedup: float  # the cost of all modules over that of the largest group
    largest: float  # seconds of a step of the largest group
    terms: dict[str, float]  # seconds, of `terms_of`; their sum is `seconds`
    limit: str  # the name of the term that limits the speed


def table_of(rule: str, num_frames: int, num_devices: int) -> schedules.ClockTable:
    """The frames of every device at every step; the modules of a device are one stage."""
    if rule == "sideways":
        return schedules.sideways(num_frames, num_devices)
    return schedules.make(rule, num_frames, num_devices)


def numbers_of_devices(most: int) -> tuple[int, ...]:
    """Powers of two below `most`, and `most`.

    >>> numbers_of_devices(6)
    (1, 2, 4, 6)
    """
    powers = [2**n for n in range(most.bit_length()) if 2**n < most]
    return (*powers, most)


def exchange_seconds(link: Link, num_bytes: int, num_devices: int) -> float:
    """Seconds of the messages of `devices.exchange`, up and down, one after the other.

    >>> [exchange_seconds(Link(latency=2.0, seconds_per_byte=0.5), 10, n) for n in (1, 2, 3)]
    [0.0, 7.0, 14.0]
    """
    messages = min(num_devices - 1, 2)
    return messages * (link.latency + num_bytes * link.seconds_per_byte)


def step_seconds(rule: str, table: schedules.ClockTable, modules: Modules, groups: Groups):
    """How long every device computes at every step, `[T, N]`.

    Sideways computes bubbles as well and discards them, so every step costs both passes. With exact
    backprop an idle device computes nothing, and a backward pass uses kept residuals, except with
    gpipe, which runs the forward pass again.
    """
    forward = np.array([sum(modules.forward[i] for i in group) for group in groups])
    both = np.array([sum(modules.both[i] for i in group) for group in groups])
    if rule == "sideways":
        return np.tile(both, (table.num_steps, 1))
    backward = both if rule == "gpipe" else both - forward
    return (table.forward >= 0) * forward + (table.backward >= 0) * backward


def held_bytes(rule: str, modules: Modules, groups: Groups) -> tuple[int, int]:
    """Bytes that a device copies at a step, `(parameters, activations)`, for the largest device.

    The activations are those that its modules send. Gpipe copies only the activation from below: as
    much as the longest message.
    """
    params = max(sum(modules.param_bytes[i] for i in group) for group in groups)
    if rule == "gpipe":
        return params, message_bytes(modules, groups)
    sent = (*modules.signal_bytes, 0)  # The top sends nothing.
    return params, max(sum(sent[i] for i in group) for group in groups)


def message_bytes(modules: Modules, groups: Groups) -> int:
    """Bytes of the longest signal between devices."""
    return max((modules.signal_bytes[group[-1]] for group in groups[:-1]), default=0)


def play(work: np.ndarray, between: float) -> float:
    """Seconds until all devices have done all steps, if each waits for its neighbours alone.

    end[t, n] = max(end[t-1, n-1], end[t-1, n], end[t-1, n+1]) + work[t, n] + between

    Args:
      work: seconds `[T, N]`, of `step_seconds`.
      between: further seconds of every step.

    >>> play(np.array([[1.0, 0.0], [0.0, 3.0]]), between=0.5)
    5.0
    """
    end = np.zeros(work.shape[1] + 2)  # One more column on either side, always zero.
    for now in work:
        end[1:-1] = np.maximum(np.maximum(end[:-2], end[1:-1]), end[2:]) + now + between
    return float(end.max())


def predict(
    rule: str,
    modules: Modules,
    num_frames: int,
    num_devices: int,
    link: Link,
    overhead: Overhead,
    groups: Groups | None = None,
) -> Prediction:
    """Predicts the time of a clip on several devices.

    Args:
      rule: "sideways" or the schedule of backprop: "blocking", "gpipe", "1f1b".
      modules: their costs.
      num_frames: K.
      num_devices: N, at most D.
      link: the cost of messages.
      overhead: the overhead of the library.
      groups: the modules of every device; balanced by default.

    Raises:
      ValueError: for another rule or another N; for Sideways with fewer than 2D-1 frames, which
        would not train the lowest module.
    """
    depth = modules.depth
    if rule == "sideways" and num_frames < 2 * depth - 1:
        raise ValueError(
            f"Sideways does not train the lowest of {depth} modules with {num_frames} frames: give "
            f"at least {2 * depth - 1}"
        )
    groups = groups or balanced(modules, num_devices)
    table = table_of(rule, num_frames, num_devices)
    params, signals = held_bytes(rule, modules, groups)
    sent = message_bytes(modules, groups)
    exchange = exchange_seconds(link, sent, num_devices)
    added = overhead.per_step
    added += overhead.per_param_byte * params + overhead.per_signal_byte * signals
    work = step_seconds(rule, table, modules, groups)
    # With blocking backprop one device works at a time.
    passed = (
        work.sum() + table.num_steps * (exchange + added)
        if rule == "blocking"
        else play(work, exchange + added)
    )
    seconds = float(passed) + overhead.per_update
    costs = [sum(modules.both[i] for i in group) for group in groups]
    terms = terms_of(rule, seconds, work, table, exchange, added, overhead, depth)
    return Prediction(
        seconds=seconds,
        groups=groups,
        ideal_speedup=sum(costs) / max(costs),
        largest=max(costs),
        terms=terms,
        limit=limit_of(rule, terms, groups, costs),
    )


def terms_of(rule, seconds, work, table, exchange, added, overhead, depth) -> dict[str, float]:
    """Where the time goes.

    Returns:
      Seconds of
        compute: the largest group's work on K frames (blocking: the work of all);
        link: exchanges of T steps;
        overhead: of the library, T steps and an update;
        filling: of exact backprop, what is left: devices that have nothing to do while the pipeline
          fills and empties. Sideways takes no step more than there are frames, but for 2D-2 of K
          steps its lowest module has no gradient yet: that share of the three others.
    """
    link = table.num_steps * exchange
    added = table.num_steps * added + overhead.per_update
    if rule == "sideways":
        unfilled = (2 * depth - 2) / table.num_steps
        compute = seconds - link - added
        terms = {"compute": compute, "link": link, "overhead": added}
        terms = {name: (1 - unfilled) * value for name, value in terms.items()}
        return terms | {"filling": unfilled * seconds}
    compute = float(work.sum()) if rule == "blocking" else float(work.sum(0).max())
    filling = seconds - compute - link - added
    return {"compute": compute, "link": link, "overhead": added, "filling": max(filling, 0.0)}


def limit_of(rule: str, terms: dict[str, float], groups: Groups, costs: Sequence[float]) -> str:
    """The largest term, by what would have to change.

    "devices": more of them would help; "module": the slowest device has one module, that has to be
    cut; "one at a time": blocking; or "link", "overhead", "filling".
    """
    largest = max(terms, key=terms.__getitem__)
    if largest != "compute":
        return largest
    if rule == "blocking" and len(groups) > 1:
        return "one at a time"
    return "devices" if len(groups[int(np.argmax(costs))]) > 1 else "module"


def useful_devices(seconds: dict[int, float], share: float = 0.9) -> int:
    """The fewest devices that reach a share of the best speed, of seconds by number of devices.

    >>> useful_devices({1: 8.0, 2: 4.2, 4: 2.1, 8: 2.0, 16: 2.5})
    4
    >>> useful_devices({1: 8.0, 2: 4.2, 4: 2.1, 8: 2.0, 16: 2.5}, share=0.99)
    8
    """
    best = min(seconds.values())
    return min(n for n, one in seconds.items() if best >= share * one)


def fit_link(num_bytes: Sequence[int], seconds: Sequence[float], num_devices: int) -> Link:
    """The link whose `exchange_seconds` are nearest, in relative least squares; nothing negative.

    Args:
      num_bytes: of every message.
      seconds: of the exchange of every message.
      num_devices: the number of devices in the exchanges.

    >>> link = fit_link([0, 1000, 4000], [4.0, 6.0, 12.0], num_devices=3)
    >>> round(link.latency, 6), round(link.seconds_per_byte, 6)
    (2.0, 0.001)
    """
    one = Link(1.0, 0.0), Link(0.0, 1.0)
    rows = [[exchange_seconds(link, size, num_devices) for link in one] for size in num_bytes]
    return Link(*_solved(rows, seconds, weights=1 / np.array(seconds)))


def fit_overhead(
    num_steps: Sequence[int],
    held: Sequence[tuple[int, int]],
    seconds: Sequence[float],
    per_signal_byte: float | None = None,
) -> Overhead:
    """The overhead that explains the time of runs besides work and messages; nothing negative.

    Args:
      num_steps: of every run.
      held: `held_bytes` of every run.
      seconds: the remaining time of every run; the fit is least squares per step.
      per_signal_byte: its value if it is known.

    >>> held = [(8, 8), (8, 8), (100, 8), (8, 50)]
    >>> found = fit_overhead([10, 40, 40, 40], held, [5 + 20, 5 + 80, 5 + 80 + 92, 5 + 80 + 84])
    >>> {name: round(value, 6) for name, value in found._asdict().items()}
    {'per_step': 1.4, 'per_param_byte': 0.025, 'per_signal_byte': 0.05, 'per_update': 5.0}
    """
    steps = np.array(num_steps, float)
    params, signals = steps * np.array(held, float).T
    if per_signal_byte is not None:
        rows = np.stack([steps, params, np.ones_like(steps)], 1)
        per_step, per_param_byte, per_update = _solved(
            rows, np.array(seconds) - per_signal_byte * signals, weights=1 / steps
        )
        return Overhead(per_step, per_param_byte, per_signal_byte, per_update)
    rows = np.stack([steps, params, signals, np.ones_like(steps)], 1)
    return Overhead(*_solved(rows, seconds, weights=1 / steps))


def _solved(rows, values, weights) -> list[float]:
    matrix = np.array(rows, float) * weights[:, None]
    # Scaled columns: bytes are many, seconds few. A column of zeros gets no cost.
    size = np.where(matrix.max(0) > 0, matrix.max(0), 1.0)
    return [float(x) for x in nnls(matrix / size, np.array(values) * weights)[0] / size]


def balanced(modules: Modules, num_devices: int) -> Groups:
    """`module_groups.balance` by the cost of both passes."""
    return _balance(modules.both, num_devices)


_balance = cache(module_groups.balance)  # Seconds for many modules on many devices.
