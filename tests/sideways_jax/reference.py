"""The Sideways rule and backpropagation as plain Python loops, to hold the library against.

Written from the paper (section 3) and from nothing else: slow on purpose, without scan, vmap or
masks. What does not exist is not computed; it is simply absent from a dictionary. Only a single
module at a time is compiled; all the rest is NumPy.

Inside, every index is 1-based as in the paper: modules `i = 1..D`, steps and frames
`t, f = 1..L`, examples of a batch `b = 1..B`, replicas `r = 1..R`. Only what goes in and comes out
counts from 0, with -1 for "none". A wire leads from module j to module i, and j = 0 is the frame.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Message(NamedTuple):
    """What one module sends to the next: an activation upwards, a pseudo-gradient downwards."""

    value: Any
    frame: int  # 1-based: the frame it comes from; of a pseudo-gradient: the frame of its loss


class Trace(NamedTuple):
    """Who worked on what. 0-based, -1 for none."""

    frames: np.ndarray  # int [L, D]: the frame whose activation module i processed at step t
    origins: np.ndarray  # int [L, D]: the frame whose loss its pseudo-gradient comes from
    losses: np.ndarray  # float [L]: the loss of step t, NaN where there is none


class Episode(NamedTuple):
    """What the library's `Episode` holds, the trace, and the parameters at the end."""

    grads: tuple
    num_grads: np.ndarray  # int32 [D]: gamma
    loss: Any
    outputs: Any  # [L, B, ...] by computation step, zeros where there is no output
    valid: np.ndarray  # bool [L]
    state: tuple
    trace: Trace
    params: tuple  # those given, unless `learning_rate` asked for online updates


class Optimizer(NamedTuple):
    """An optimizer out of a textbook; the default is plain gradient descent.

    The update number n = 1, 2, ... of one parameter, with its gradient g:

        g <- g * min(1, clip / |g of all modules|)
        u = g                                             "descent"
        m <- 0.9 m + g;  u = m                            "momentum"
        m <- 0.9 m + 0.1 g;  v <- 0.99 v + 0.01 g^2
        u = m / (1 - 0.9^n) / (sqrt(v / (1 - 0.99^n)) + EPSILON)      "adam"
        v <- 0.9 v + 0.1 g^2;  u = g / (sqrt(v) + EPSILON)            "rms"
        theta <- theta - rate / (1 + fade (n - 1)) * (u + decay * theta)
    """

    direction: str = "descent"
    rate: float = 0.05
    clip: float | None = None
    decay: float = 0.0
    fade: float = 0.0


# Large: the size of an update must not hang on gradients that are nothing but rounding.
EPSILON = 0.1


class Training(NamedTuple):
    """What is left after U updates, each after an episode."""

    params: tuple
    state: tuple
    losses: np.ndarray  # [U]
    grad_norms: np.ndarray  # [U], the norm of the gradients of all modules, before clipping


class Stream(NamedTuple):
    """What T steps of a stream gave, with an update after every few of them."""

    params: tuple
    state: tuple
    outputs: Any  # [T, B, ...], zeros where there is none; None if there is none at all
    shown: np.ndarray  # int [T, B], the frame of the output, 0-based, -1 for none
    losses: np.ndarray  # [T, B], NaN where there is no output
    # [T], of the averaged gradients of all modules, before clipping; NaN without an update
    grad_norms: np.ndarray


def sideways_episode(
    network, loss_fn, params, state, frames, targets, *,
    target, train, rng, learning_rate=None, keeps_inputs=False,
):  # fmt: skip
    """One episode of Sideways (Equations 3, 4 and 5 with the mask) by passing messages.

    Every wire has an inbox for an activation at its upper end and one for a pseudo-gradient at its
    lower end. At each step all modules take what their inboxes hold, if none of them is empty, and
    all inboxes are overwritten with what is sent in that step: what was not taken is lost, what was
    not sent is not there.

    With `keeps_inputs` it is pipelined backprop: a module remembers all of its inputs, and uses the
    one of the frame that the pseudo-gradient belongs to.

    With a `learning_rate` every module that has a gradient takes a step of plain gradient descent
    at the end of each computation step (online learning).
    """
    D = len(network.modules)
    L = len(jax.tree.leaves(frames)[0])
    x = {t: _at(frames, t) for t in range(1, L + 1)}
    y = {t: _at(targets, t) for t in range(1, L + 1)}
    theta = {i: params[i - 1] for i in range(1, D + 1)}
    sigma = {i: state[i - 1] for i in range(1, D + 1)}

    gradient_sum = {i: _zeros(theta[i]) for i in range(1, D + 1)}
    gamma = dict.fromkeys(range(1, D + 1), 0)
    output, loss = {}, {}  # by step
    activation_frame, origin = {}, {}  # by (module, step)
    memory: dict = {}  # by (module, frame)
    early: dict = {}  # likewise: what shortcuts sent down for that frame

    wires = _wires(network)
    activation_inbox: dict[tuple[int, int], Message] = {}  # by (from, to)
    pseudo_gradient_inbox: dict[tuple[int, int], Message] = {}  # likewise, of the same wires
    for t in range(1, L + 1):
        sent_up: dict[tuple[int, int], Message] = {}
        sent_down: dict[tuple[int, int], Message] = {}
        for wire in wires:
            if wire[0] == 0:
                activation_inbox[wire] = Message(x[t], t)
        gradient = {}
        for i in range(1, D + 1):
            h, f = _take_up(wires, activation_inbox, i, t)
            if f is None:
                continue
            activation_frame[i, t] = f
            memory[i, f] = h, sigma[i]
            out, sigma[i], vjp = _linearise(
                network.modules[i - 1], theta[i], sigma[i], h, train=train, rng=_key(rng, i, f)
            )
            if i < D:
                for wire in wires:
                    if wire[0] == i:
                        sent_up[wire] = Message(out, f)
                if keeps_inputs:
                    arrived = _take_of_a_frame(pseudo_gradient_inbox, early, i)
                else:
                    arrived = _take_down(wires, pseudo_gradient_inbox, i)
            else:
                label = {"stream": y[t], "origin": y[f]}[target]
                output[t] = out
                loss[t], exact_gradient = _loss_and_gradient(loss_fn, out, label)
                arrived = Message(exact_gradient, f)
            if arrived is None:
                continue
            origin[i, t] = arrived.frame
            if keeps_inputs:
                then, state_then = memory[i, arrived.frame]
                _, _, vjp = _linearise(
                    network.modules[i - 1], theta[i], state_then, then,
                    train=train, rng=_key(rng, i, arrived.frame),
                )  # fmt: skip
            gradient[i], input_cotangent = _pull_back(vjp, arrived.value)
            gradient_sum[i] = _add(gradient_sum[i], gradient[i])
            gamma[i] += 1
            for wire, part in _by_wire(wires, i, input_cotangent):
                sent_down[wire] = Message(part, arrived.frame)
                _note_early(early, wire, sent_down[wire])
        activation_inbox, pseudo_gradient_inbox = sent_up, sent_down
        if learning_rate is not None:
            for i, g in gradient.items():
                theta[i] = jax.tree.map(lambda p, d: np.asarray(p) - learning_rate * d, theta[i], g)

    _assert_closed_forms(D, L, activation_frame, origin, gamma, output)
    return Episode(
        grads=tuple(_divide(gradient_sum[i], max(gamma[i], 1)) for i in range(1, D + 1)),
        num_grads=np.array([gamma[i] for i in range(1, D + 1)], np.int32),
        loss=_mean(loss),
        outputs=_stack_outputs(output, L),
        valid=np.array([t in output for t in range(1, L + 1)]),
        state=tuple(sigma[i] for i in range(1, D + 1)),
        trace=_trace(D, L, activation_frame, origin, loss),
        params=tuple(theta[i] for i in range(1, D + 1)),
    )


pipelined_episode = functools.partial(sideways_episode, keeps_inputs=True)


def backprop_episode(
    network, loss_fn, params, state, frames, targets, *, target="stream", train, rng
):
    """One episode of BP (Equations 1 and 2): frame after frame, nothing sent late.

    A frame's output always meets its own target, whatever `target` says: without a pipeline the
    target of now is the target of the frame.
    """
    del target
    D = len(network.modules)
    L = len(jax.tree.leaves(frames)[0])
    theta = {i: params[i - 1] for i in range(1, D + 1)}
    sigma = {i: state[i - 1] for i in range(1, D + 1)}

    gradient_sum = {i: _zeros(theta[i]) for i in range(1, D + 1)}
    output, loss = {}, {}
    activation_frame, origin = {}, {}
    wires = _wires(network)
    for f in range(1, L + 1):
        h, vjp = {0: _at(frames, f)}, {}
        for i in range(1, D + 1):
            h[i], sigma[i], vjp[i] = _linearise(
                network.modules[i - 1], theta[i], sigma[i], _heard(wires, i, h),
                train=train, rng=_key(rng, i, f),
            )  # fmt: skip
        output[f] = h[D]
        loss[f], exact_gradient = _loss_and_gradient(loss_fn, h[D], _at(targets, f))
        cotangent = {D: exact_gradient}
        for i in range(D, 0, -1):
            gradient, input_cotangent = _pull_back(vjp[i], cotangent[i])
            _collect(wires, i, input_cotangent, cotangent)
            gradient_sum[i] = _add(gradient_sum[i], gradient)
            activation_frame[i, f] = origin[i, f] = f

    return Episode(
        grads=tuple(_divide(gradient_sum[i], L) for i in range(1, D + 1)),
        num_grads=np.full(D, L, np.int32),
        loss=_mean(loss),
        outputs=_stack_outputs(output, L),
        valid=np.ones(L, bool),
        state=tuple(sigma[i] for i in range(1, D + 1)),
        trace=_trace(D, L, activation_frame, origin, loss),
        params=params,
    )


def sideways_stream(
    network, loss_fn, params, state, frames, targets, reset, *,
    target, update_every, optimizer, rng, replicas=1, keeps_inputs=False, stashes_weights=False,
):  # fmt: skip
    """Online learning on B streams: every example sends messages of its own.

    The weights change after every `update_every` steps. Where `reset` says that the frame of an
    example is the first of another stream, the inboxes of this example are emptied before.

    A module runs for one example at a time. It takes batches: here all rows of its batch are copies
    of the example, and one of them is looked at, the one where the example belongs (which masks of
    dropout go by). So this only stands for modules that treat the examples of a batch apart. Only
    the new state comes from the batch as it is, when every example has an activation; otherwise the
    state stays.

    A gradient is the mean over all examples and steps that have one. With replicas, each has its
    share of the batch, keys of its own, and a state of its own until the next update, when the
    states are averaged.

    With `keeps_inputs` it is pipelined backprop, as in an episode. The weights of the backward pass
    are those of now, or with `stashes_weights` those that the input met in its forward pass.
    """
    D = len(network.modules)
    T, B = reset.shape
    rows = B // replicas
    x = {(b, t): _row(_at(frames, t), b) for b in range(1, B + 1) for t in range(1, T + 1)}
    y = {(b, t): _row(_at(targets, t), b) for b in range(1, B + 1) for t in range(1, T + 1)}
    theta = {i: params[i - 1] for i in range(1, D + 1)}
    sigma = {(r, i): state[i - 1] for r in range(1, replicas + 1) for i in range(1, D + 1)}
    replica_rng = {r: _replica_rng(rng, r, replicas) for r in range(1, replicas + 1)}
    replica = {b: (b - 1) // rows + 1 for b in range(1, B + 1)}
    row_of = {b: (b - 1) % rows + 1 for b in range(1, B + 1)}  # its place in the share

    output, loss, shown = {}, {}, {}  # by (example, step)
    grad_norm = {}  # by step
    memory: dict = {}
    gradients: dict[int, list] = {i: [] for i in range(1, D + 1)}

    wires = _wires(network)
    activation_inbox: dict[int, dict] = {b: {} for b in replica}  # of every example, by wire
    pseudo_gradient_inbox: dict[int, dict] = {b: {} for b in replica}
    early: dict[int, dict] = {b: {} for b in replica}  # as in an episode
    inputs: dict = {}  # by (example, module, frame), with the state and the weights of then
    for t in range(1, T + 1):
        for b in range(1, B + 1):
            if reset[t - 1, b - 1]:
                activation_inbox[b], pseudo_gradient_inbox[b], early[b] = {}, {}, {}
            for wire in wires:
                if wire[0] == 0:
                    activation_inbox[b][wire] = Message(x[b, t], t)
        sent_up: dict[int, dict] = {b: {} for b in replica}
        sent_down: dict[int, dict] = {b: {} for b in replica}
        for i in range(1, D + 1):
            module = network.modules[i - 1]
            taken = {b: _take_up(wires, activation_inbox[b], i, t) for b in replica}
            for b in range(1, B + 1):
                h, f = taken[b]
                if f is None:
                    continue
                r = replica[b]
                inputs[b, i, f] = h, sigma[r, i], theta[i]
                batch_out, _, vjp = _linearise(
                    module, theta[i], sigma[r, i], _stack([h] * rows),
                    train=True, rng=_key(replica_rng[r], i, f),
                )  # fmt: skip
                out = _row(batch_out, row_of[b])
                if i < D:
                    for wire in wires:
                        if wire[0] == i:
                            sent_up[b][wire] = Message(out, f)
                    if keeps_inputs:
                        arrived = _take_of_a_frame(pseudo_gradient_inbox[b], early[b], i)
                    else:
                        arrived = _take_down(wires, pseudo_gradient_inbox[b], i)
                else:
                    label = {"stream": y[b, t], "origin": y[b, f]}[target]
                    output[b, t], shown[b, t] = out, f
                    loss[b, t], exact_gradient = _loss_and_gradient(
                        loss_fn, _stack([out]), _stack([label])
                    )
                    arrived = Message(_row(exact_gradient, 1), f)
                if arrived is None:
                    continue
                if keeps_inputs:
                    then, state_then, theta_then = inputs[b, i, arrived.frame]
                    weights = theta_then if stashes_weights else theta[i]
                    _, _, vjp = _linearise(
                        module, weights, state_then, _stack([then] * rows),
                        train=True, rng=_key(replica_rng[r], i, arrived.frame),
                    )  # fmt: skip
                nothing = _zeros(arrived.value)
                cotangent = [nothing] * rows
                cotangent[row_of[b] - 1] = arrived.value
                gradient, input_cotangent = _pull_back(vjp, _stack(cotangent))
                gradients[i].append(gradient)
                for wire, part in _by_wire(wires, i, input_cotangent):
                    sent_down[b][wire] = Message(_row(part, row_of[b]), arrived.frame)
                    _note_early(early[b], wire, sent_down[b][wire])
            if all(f is not None for _, f in taken.values()):
                for r in range(1, replicas + 1):
                    share = [Message(*taken[b]) for b in replica if replica[b] == r]
                    _, sigma[r, i], _ = _linearise(
                        module, theta[i], sigma[r, i], _stack([h for h, _ in share]),
                        train=True, rng=_key(replica_rng[r], i, share[0].frame),
                    )  # fmt: skip
        activation_inbox, pseudo_gradient_inbox = sent_up, sent_down
        if t % update_every == 0:
            n = t // update_every
            mean = {i: _average(found) for i, found in gradients.items() if found}
            grad_norm[t] = _global_norm(mean)
            theta = _update(optimizer, n, theta, mean, memory)
            gradients = {i: [] for i in range(1, D + 1)}
            for i in range(1, D + 1):
                agreed = _agreed([sigma[r, i] for r in range(1, replicas + 1)])
                sigma |= {(r, i): agreed for r in range(1, replicas + 1)}

    agreed = tuple(sigma[1, i] for i in range(1, D + 1))
    return _stream(theta, agreed, output, shown, loss, grad_norm, T, B)


pipelined_stream = functools.partial(sideways_stream, keeps_inputs=True)


def blocking_stream(
    network, loss_fn, params, state, frames, targets, reset, *, optimizer, rng
):  # fmt: skip
    """Backprop on B streams that do not wait: of 2D-1 frames one is taken.

    The frame of step t is on its way up until step t+D-1, then its output is shown until the next
    is ready, and is paired with the target of now; unless the stream of an example has ended since
    the frame came. The gradient of the frame with its own target is on its way down until step
    t+2D-2, and with it the update, before the next frame is taken.
    """
    D = len(network.modules)
    T, B = reset.shape
    theta = {i: params[i - 1] for i in range(1, D + 1)}
    sigma = {i: state[i - 1] for i in range(1, D + 1)}
    memory: dict = {}
    wires = _wires(network)
    result, grad_norm = {}, {}  # by frame that is taken
    for n, t in enumerate(range(1, T + 1, 2 * D - 1), start=1):
        h, vjp, gradient = {0: _at(frames, t)}, {}, {}
        for i in range(1, D + 1):
            h[i], sigma[i], vjp[i] = _linearise(
                network.modules[i - 1], theta[i], sigma[i], _heard(wires, i, h),
                train=True, rng=_key(rng, i, t),
            )  # fmt: skip
        result[t] = h[D]
        _, exact_gradient = _loss_and_gradient(loss_fn, h[D], _at(targets, t))
        cotangent = {D: exact_gradient}
        for i in range(D, 0, -1):
            gradient[i], input_cotangent = _pull_back(vjp[i], cotangent[i])
            _collect(wires, i, input_cotangent, cotangent)
        grad_norm[t] = _global_norm(gradient)
        theta = _update(optimizer, n, theta, gradient, memory)

    output, loss, shown = {}, {}, {}
    for t in range(1, T + 1):
        ready = [f for f in result if f + D - 1 <= t]
        for b in range(1, B + 1):
            if not ready or reset[ready[-1] : t, b - 1].any():  # A first frame after this one.
                continue
            shown[b, t] = ready[-1]
            output[b, t] = _row(result[ready[-1]], b)
            label = _row(_at(targets, t), b)
            loss[b, t], _ = _loss_and_gradient(loss_fn, _stack([output[b, t]]), _stack([label]))
    state = tuple(sigma[i] for i in range(1, D + 1))
    return _stream(theta, state, output, shown, loss, grad_norm, T, B)


def train(episode, network, loss_fn, params, state, clips, *, optimizer, rng, **options):
    """An update after every episode.

    Args:
      episode: `sideways_episode`, `backprop_episode`, or what `replicated` makes of them.
      clips: `(frames, targets)` of one episode after the other; episode n (from 0) has the key
        `fold_in(rng, n)`.
      optimizer: an `Optimizer`.
      options: of the episode.
    """
    D = len(network.modules)
    memory, losses, grad_norms = {}, [], []
    for n, (frames, targets) in enumerate(clips, start=1):
        key = None if rng is None else jax.random.fold_in(rng, n - 1)
        one = episode(
            network, loss_fn, params, state, frames, targets, train=True, rng=key, **options
        )
        theta = {i: params[i - 1] for i in range(1, D + 1)}
        gradient = {i: one.grads[i - 1] for i in range(1, D + 1)}
        theta = _update(optimizer, n, theta, gradient, memory)
        params, state = tuple(theta[i] for i in range(1, D + 1)), one.state
        losses.append(one.loss)
        grad_norms.append(_global_norm(gradient))
    return Training(params, state, np.array(losses), np.array(grad_norms))


def replicated(episode: Callable, replicas: int) -> Callable:
    """`episode` on R replicas, each with its share of the batch and keys of its own.

    Gradients, losses and states are averaged at the end; a state of integers has to be the same.
    """

    def run(network, loss_fn, params, state, frames, targets, *, rng, **options):
        rows = len(jax.tree.leaves(frames)[0][0]) // replicas
        parts = []
        for r in range(1, replicas + 1):
            share = slice((r - 1) * rows, r * rows)
            own = [jax.tree.map(lambda leaf, s=share: leaf[:, s], x) for x in (frames, targets)]
            key = _replica_rng(rng, r, replicas)
            parts.append(episode(network, loss_fn, params, state, *own, rng=key, **options))
        return parts[0]._replace(
            grads=_average([one.grads for one in parts]),
            loss=_average([one.loss for one in parts]),
            outputs=jax.tree.map(
                lambda *leaves: np.concatenate(leaves, axis=1), *[one.outputs for one in parts]
            ),
            state=_agreed([one.state for one in parts]),
        )

    return run


def _wires(network):
    """All wires `(from, to)`, those to one module in the order in which it hears them."""
    main = [(i - 1, i) for i in range(1, len(network.modules) + 1)]
    return main + [(source + 1, receiver + 1) for source, receiver in network.shortcuts]


def _heard(wires, i, values):
    """The input of module i, out of what modules gave: several come as a tuple."""
    heard = tuple(values[j] for j, k in wires if k == i)
    return heard[0] if len(heard) == 1 else heard


def _take_up(wires, inbox, i, t):
    """What module i hears at step t, and the frame that the main path brings; or that it waits."""
    mine = [wire for wire in wires if wire[1] == i]
    if not all(wire in inbox for wire in mine):
        return None, None
    for j, k in mine:  # What module j sent at the step before, and the frame of now.
        assert inbox[j, k].frame == (t - j if j else t)
    return _heard(wires, i, {j: inbox[j, i].value for j, _ in mine}), inbox[i - 1, i].frame


def _take_down(wires, inbox, i):
    """The sum of what those that hear module i sent down, if all have; its frame is the oldest."""
    mine = [wire for wire in wires if wire[0] == i]
    if not all(wire in inbox for wire in mine):
        return None
    total = inbox[i, i + 1].value
    for wire in mine:
        if wire != (i, i + 1):
            total = _add(total, inbox[wire].value)
    return Message(total, inbox[i, i + 1].frame)


def _take_of_a_frame(inbox, early, i):
    """What the module above module i sent down, and what shortcuts did for the same frame."""
    if (i, i + 1) not in inbox:
        return None
    value, f = inbox[i, i + 1]
    return Message(_add(value, early[i, f]) if (i, f) in early else value, f)


def _note_early(early, wire, message):
    """Module k used, with its own frame f, a newer one of module j: f + k-1-j."""
    j, k = wire
    if j < k - 1:
        f = message.frame + k - 1 - j
        early[j, f] = _add(early[j, f], message.value) if (j, f) in early else message.value


def _by_wire(wires, i, input_cotangent):
    """The parts of the cotangent of module i's input, by wire; the frame needs none."""
    mine = [wire for wire in wires if wire[1] == i]
    parts = input_cotangent if len(mine) > 1 else (input_cotangent,)
    return [(wire, part) for wire, part in zip(mine, parts, strict=True) if wire[0] > 0]


def _collect(wires, i, input_cotangent, cotangent):
    """Adds what module i sends down to the cotangents of the modules that it hears."""
    for (j, _), part in _by_wire(wires, i, input_cotangent):
        cotangent[j] = _add(cotangent[j], part) if j in cotangent else part


def _update(optimizer, n, theta, gradient, memory):
    """Update number n, from 1, of the modules that are in `gradient`; the others stay.

    `memory` keeps what the optimizer remembers of every parameter that it has moved.
    """
    norm = _global_norm(gradient)
    factor = 1.0
    if optimizer.clip is not None and norm > optimizer.clip:
        factor = optimizer.clip / norm
    rate = optimizer.rate / (1 + optimizer.fade * (n - 1))
    theta = dict(theta)
    for i in gradient:
        leaves, structure = jax.tree.flatten(theta[i])
        moved = []
        for k, (p, g) in enumerate(zip(leaves, jax.tree.leaves(gradient[i]), strict=True)):
            p, g = np.asarray(p), np.asarray(g) * factor
            m, v = memory.get((i, k), (0.0, 0.0))
            if optimizer.direction == "descent":
                u = g
            elif optimizer.direction == "momentum":
                m = 0.9 * m + g
                u = m
            elif optimizer.direction == "adam":
                m = 0.9 * m + 0.1 * g
                v = 0.99 * v + 0.01 * g**2
                u = m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.99**n)) + EPSILON)
            elif optimizer.direction == "rms":
                v = 0.9 * v + 0.1 * g**2
                u = g / (np.sqrt(v) + EPSILON)
            else:
                raise ValueError(optimizer.direction)
            memory[i, k] = m, v
            moved.append(np.asarray(p - rate * (u + optimizer.decay * p)))
        theta[i] = jax.tree.unflatten(structure, moved)
    return theta


def _global_norm(gradient):
    return math.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(gradient)))


def _replica_rng(rng, r, replicas):
    """A single replica has the key as it is; each of several has its own."""
    return rng if rng is None or replicas == 1 else jax.random.fold_in(rng, r - 1)


def _agreed(states):
    """The state of all replicas, out of what each has: a mean; integers have to be the same."""

    def agree(*leaves):
        leaves = [np.asarray(leaf) for leaf in leaves]
        if np.issubdtype(leaves[0].dtype, np.inexact):
            return (sum(leaves) / len(leaves)).astype(leaves[0].dtype)
        assert all((leaf == leaves[0]).all() for leaf in leaves)
        return leaves[0]

    return jax.tree.map(agree, *states)


def _average(trees):
    return jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)) / len(leaves), *trees)


def _row(tree, b):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[b - 1], tree)


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def _stream(theta, state, output, shown, loss, grad_norm, T, B):
    def table(entries, otherwise):
        steps, examples = range(1, T + 1), range(1, B + 1)
        return [[entries.get((b, t), otherwise) for b in examples] for t in steps]

    outputs = None
    if output:
        nothing = _zeros(next(iter(output.values())))
        outputs = _stack([_stack(row) for row in table(output, nothing)])
    return Stream(
        params=tuple(theta[i] for i in sorted(theta)),
        state=state,
        outputs=outputs,
        shown=np.array(table(shown, 0), int) - 1,
        losses=np.array(table(loss, np.nan), float),
        grad_norms=np.array([grad_norm.get(t, np.nan) for t in range(1, T + 1)]),
    )


def _assert_closed_forms(D, L, activation_frame, origin, gamma, output):
    """What the messages did has to be what the formulas say, at every module and step."""
    for i in range(1, D + 1):
        for t in range(1, L + 1):
            assert ((i, t) in activation_frame) == (t >= i)
            if t >= i:
                assert activation_frame[i, t] == t - i + 1
            assert ((i, t) in origin) == (t >= 2 * D - i)
            if t >= 2 * D - i:
                assert origin[i, t] == t - 2 * D + 1 + i
                assert activation_frame[i, t] - origin[i, t] == 2 * (D - i)
        assert gamma[i] == max(0, L - 2 * D + i + 1)
    assert sorted(output) == list(range(D, L + 1))


@functools.partial(jax.jit, static_argnames=("module", "train"))
def _linearise(module, params, state, x, *, train, rng):
    """`H_i` at its current input: the output, the new state, and the vector-Jacobian product."""

    def forward(params, x):
        return module.apply(params, state, x, train=train, rng=rng)

    y, vjp, new_state = jax.vjp(forward, params, x, has_aux=True)
    return y, new_state, vjp


@functools.partial(jax.jit, static_argnames="loss_fn")
def _loss_and_gradient(loss_fn, output, target):
    return jax.value_and_grad(loss_fn)(output, target)


@jax.jit
def _pull_back(vjp, cotangent):
    return vjp(cotangent)


@jax.jit
def _key(rng, i, f):
    """The key of module i for frame f: both count from 0 where the keys are made."""
    return None if rng is None else jax.random.fold_in(jax.random.fold_in(rng, i - 1), f - 1)


def _at(tree, t):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[t - 1], tree)


def _zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def _add(a, b):
    return jax.tree.map(lambda x, y: x + np.asarray(y), a, b)


def _divide(tree, n):
    return jax.tree.map(lambda leaf: leaf / n, tree)


def _mean(loss):
    values = [np.asarray(value) for value in loss.values()]
    return np.asarray(sum(values) / len(values))


def _stack_outputs(output, L):
    some_output = next(iter(output.values()))
    rows = [output.get(t, _zeros(some_output)) for t in range(1, L + 1)]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)


def _trace(D, L, activation_frame, origin, loss):
    def table(entries):
        rows = [[entries.get((i, t), 0) - 1 for i in range(1, D + 1)] for t in range(1, L + 1)]
        return np.array(rows)

    losses = np.array([float(loss.get(t, np.nan)) for t in range(1, L + 1)])
    return Trace(table(activation_frame), table(origin), losses)
