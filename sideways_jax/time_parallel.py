"""Episodes computed module by module, with all frames at once.

Within an episode the weights do not change, so what a module does at different steps does not
depend on one another. Each module runs on all its K - i inputs in parallel, and the way of the
pseudo-gradients through time becomes a shift: at step t module i (0-based) holds frame f = t - i
and gets what module i+1 sent at step t-1, when that held frame (t-1) - (i+1) = f - 2. So on the way
down cotangents move *two frames* later at every module boundary. The first 2(D-1-i) frames of
module i get none and need no backward pass; those that would come after its last one are dropped.

The same pseudo-gradients as `lax.scan` over computation steps, at the cost of batched backprop;
and backprop itself is the case without the shift.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from sideways_jax.episode import Episode, align_targets
from sideways_jax.network import module_key
from sideways_jax.state_split import split_state
from sideways_jax.trees import PyTree, average, first_of


def episode(
    network, loss_fn, params, state, frames, targets, *, delay, target, train, rng
) -> Episode:
    """An episode of Sideways (delay=1) or backprop (delay=0), all frames at once.

    Args:
      delay: how many computation steps a signal takes from a module to the next: up, module i has
        `delay * i` frames fewer than there are; down, cotangents shift by `2 * delay` frames.
    """
    depth = network.depth
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    # The target that the output of each frame is paired with, for frames that reach the top.
    aligned = _frames_from(
        align_targets(targets, depth, target) if delay else targets, delay * (depth - 1)
    )

    x = frames
    new_state, pull_backs = [], []
    for i, module in enumerate(network.modules):
        count = num_frames - delay * i  # frames that reach this module
        untrained = 2 * delay * (depth - 1 - i)  # of them, that meet no pseudo-gradient
        x = _frames_to(x, count)
        keys = None
        if rng is not None:
            keys = jax.vmap(partial(module_key, rng, i))(jnp.arange(count, dtype=jnp.int32))
        x, module_state, pull_back = _run_module(
            module, params[i], state[i], x, keys, untrained, train=train
        )
        new_state.append(module_state)
        pull_backs.append(pull_back)

    losses, cotangent = jax.vmap(jax.value_and_grad(loss_fn))(x, aligned)
    grads, num_grads = [], []
    for pull_back in reversed(pull_backs):
        count = jax.tree.leaves(cotangent)[0].shape[0]
        module_grads, cotangent = pull_back(cotangent)
        grads.append(average(module_grads, count))
        num_grads.append(count)
        # Entry n belongs to the n-th trained frame of this module. Two frames later in the module
        # below is the n-th trained frame there too, so that the shift is to drop the last one.
        cotangent = _frames_to(cotangent, count - delay)

    late = delay * (depth - 1)  # computation steps before the first output
    outputs = jax.tree.map(lambda y: jnp.pad(y, [(late, 0)] + [(0, 0)] * (y.ndim - 1)), x)
    return Episode(
        grads=tuple(reversed(grads)),
        num_grads=jnp.asarray(num_grads[::-1], jnp.int32),
        loss=jnp.mean(losses),
        outputs=outputs,
        valid=jnp.arange(num_frames) >= late,
        state=tuple(new_state),
    )


sideways_episode = partial(episode, delay=1)
backprop_episode = partial(episode, delay=0)


def _run_module(module, params, state, x, keys, untrained, *, train):
    """One module on all its frames `[n, B, ...]`.

    Returns the outputs of all frames, the state after the last one, and the vjp of the outputs
    from frame number `untrained` on, in the parameters and in those frames.
    """
    rng = None if keys is None else keys[0]
    split = split_state(module, params, state, first_of(x), rng, train=train)
    over_frames = jax.vmap(split.forward, in_axes=(None, None, 0, None if keys is None else 0))

    def forward(params, x, keys):
        return over_frames(params, state, x, keys)

    keys_head, keys_tail = (None, None) if keys is None else (keys[:untrained], keys[untrained:])
    y, pull_back, residuals = jax.vjp(
        lambda params, x: forward(params, x, keys_tail),
        params,
        _frames_from(x, untrained),
        has_aux=True,
    )
    if untrained:
        y_head, residuals_head = forward(params, _frames_to(x, untrained), keys_head)
        y, residuals = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), (y_head, residuals_head), (y, residuals)
        )
    if split.update is not None:
        # There may be no residuals: the state that counts frames, say.
        count = jax.tree.leaves(x)[0].shape[0]
        state, _ = jax.lax.scan(lambda s, r: (split.update(s, r), None), state, residuals, count)
    return y, state, pull_back


def _frames_to(tree: PyTree, stop: int) -> PyTree:
    return jax.tree.map(lambda x: x[:stop], tree)


def _frames_from(tree: PyTree, start: int) -> PyTree:
    return jax.tree.map(lambda x: x[start:], tree)
