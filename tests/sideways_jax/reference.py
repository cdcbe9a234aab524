"""The Sideways rule and backpropagation as plain Python loops, to hold the library against.

Written from the paper (section 3) and from nothing else: slow on purpose, without scan, vmap or
masks. What does not exist is not computed; it is simply absent from a dictionary. Only a single
module at a time is compiled; all the rest is NumPy.

Inside, every index is 1-based as in the paper: modules `i = 1..D`, steps and frames
`t, f = 1..L`. Only what goes in and comes out counts from 0, with -1 for "none".
"""

import functools
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


def sideways_episode(
    network, loss_fn, params, state, frames, targets, *, target, train, rng, learning_rate=None
):
    """One episode of Sideways (Equations 3, 4 and 5 with the mask) by passing messages.

    Every module has an inbox for an activation and one for a pseudo-gradient. At each step all
    modules take what their inboxes hold, and all inboxes are overwritten with what is sent in
    that step: what was not taken is lost, what was not sent is not there.

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

    activation_inbox: dict[int, Message] = {}
    pseudo_gradient_inbox: dict[int, Message] = {}
    for t in range(1, L + 1):
        activation_inbox[1] = Message(x[t], t)
        sent_up: dict[int, Message] = {}
        sent_down: dict[int, Message] = {}
        gradient = {}
        for i in range(1, D + 1):
            if i not in activation_inbox:
                continue
            h, f = activation_inbox[i]
            activation_frame[i, t] = f
            out, sigma[i], vjp = _linearise(
                network.modules[i - 1], theta[i], sigma[i], h, train=train, rng=_key(rng, i, f)
            )
            if i < D:
                sent_up[i + 1] = Message(out, f)
                arrived = pseudo_gradient_inbox.get(i)
            else:
                label = {"stream": y[t], "origin": y[f]}[target]
                output[t] = out
                loss[t], exact_gradient = _loss_and_gradient(loss_fn, out, label)
                arrived = Message(exact_gradient, f)
            if arrived is None:
                continue
            origin[i, t] = arrived.frame
            gradient[i], input_cotangent = _pull_back(vjp, arrived.value)
            gradient_sum[i] = _add(gradient_sum[i], gradient[i])
            gamma[i] += 1
            if i > 1:
                sent_down[i - 1] = Message(input_cotangent, arrived.frame)
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
    for f in range(1, L + 1):
        h, vjp = {0: _at(frames, f)}, {}
        for i in range(1, D + 1):
            h[i], sigma[i], vjp[i] = _linearise(
                network.modules[i - 1],
                theta[i],
                sigma[i],
                h[i - 1],
                train=train,
                rng=_key(rng, i, f),
            )
        output[f] = h[D]
        loss[f], cotangent = _loss_and_gradient(loss_fn, h[D], _at(targets, f))
        for i in range(D, 0, -1):
            gradient, cotangent = _pull_back(vjp[i], cotangent)
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
