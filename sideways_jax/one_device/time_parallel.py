"""Episodes computed module by module, with all frames at once.

Within an episode the weights do not change, so what a module does at different steps does not
depend on one another. Each module runs on all its K - i inputs in parallel, and the way of the
pseudo-gradients through time becomes a shift: at step t module i (0-based) holds frame f = t - i
and gets what module i+1 sent at step t-1, when that held frame (t-1) - (i+1) = f - 2. So on the way
down cotangents move *two frames* later at every module boundary. The first 2(D-1-i) frames of
module i get none and need no backward pass; those that would come after its last one are dropped.

The same pseudo-gradients as `lax.scan` over computation steps, at the cost of batched backprop;
and backprop itself is the case without the shift.

Two kinds of modules take their frames one by one all the same, with the same answer as ever, and
the rest of the network stays as it is: those whose output depends on a state that changes from
frame to frame (recurrent ones, say), and those whose random numbers would be others for a batch of
keys than for each alone (of the generators "rbg" and "unsafe_rbg").

Sums over frames are made in `trees.wide` dtypes (`wide_sums.py`): the gradients of bfloat16
parameters are float32, twice the bytes, until they are divided by their number.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.module import module_key
from sideways_jax.one_device.state_split import draws_alike, remembered, split_program, trace
from sideways_jax.one_device.wide_sums import has_narrow, with_wide_sums, without_integers
from sideways_jax.rule.episode import Episode, align_targets
from sideways_jax.tools.trees import (
    PyTree,
    accumulate,
    average,
    cast_like,
    first_of,
    wide,
    wide_zeros,
)


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
        x, module_state, pull_back = _run_module(
            module, params[i], state[i], _frames_to(x, count), _Keys(rng, i), untrained, train=train
        )
        new_state.append(module_state)
        pull_backs.append(pull_back)

    losses, cotangent = jax.vmap(jax.value_and_grad(loss_fn))(x, aligned)
    grads, num_grads = [], []
    for pull_back, module_params in zip(reversed(pull_backs), reversed(params), strict=True):
        count = jax.tree.leaves(cotangent)[0].shape[0]
        module_grads, cotangent = pull_back(cotangent)
        grads.append(average(module_grads, count, like=module_params))
        num_grads.append(count)
        # Entry n belongs to the n-th trained frame of this module. Two frames later in the module
        # below is the n-th trained frame there too, so that the shift is to drop the last one.
        cotangent = _frames_to(cotangent, count - delay)

    late = delay * (depth - 1)  # computation steps before the first output
    outputs = jax.tree.map(lambda y: jnp.pad(y, [(late, 0)] + [(0, 0)] * (y.ndim - 1)), x)
    return Episode(
        grads=tuple(reversed(grads)),
        num_grads=jnp.asarray(num_grads[::-1], jnp.int32),
        loss=average(jnp.sum(losses.astype(wide(losses.dtype))), losses.shape[0]),
        outputs=outputs,
        valid=jnp.arange(num_frames) >= late,
        state=tuple(new_state),
    )


sideways_episode = partial(episode, delay=1)
backprop_episode = partial(episode, delay=0)


class _Keys(NamedTuple):
    """The keys of a module."""

    rng: jax.Array | None  # of the episode
    module: int  # its number; not `index`, which is a method of every tuple

    def of_frame(self, frame_id: jax.Array | int) -> jax.Array | None:
        """The key of one frame."""
        return module_key(self.rng, self.module, frame_id)

    def of_frames(self, count: int) -> jax.Array | None:
        """The keys of the first frames, `[count]`."""
        if self.rng is None:
            return None
        frame_ids = jnp.arange(count, dtype=jnp.int32)
        if jax.random.key_impl(self.rng) == "threefry2x32":
            return jax.vmap(self.of_frame)(frame_ids)
        return jax.lax.map(self.of_frame, frame_ids)  # "unsafe_rbg" would give other keys.


def _run_module(module, params, state, x, keys, untrained, *, train):
    """One module on all its frames `[n, B, ...]`.

    Returns the outputs of all frames, the state after the last one, and the vjp of the outputs
    from frame number `untrained` on, in the parameters and in those frames. What the vjp gives for
    the parameters is a sum over frames in wide dtypes.
    """
    program = trace(module, params, state, first_of(x), keys.rng, train=train)
    split = split_program(program)
    if split is not None and draws_alike(program):
        return _all_at_once(
            split, params, state, x, keys, untrained, has_narrow(program.closed.jaxpr)
        )
    return _one_by_one(module, params, state, x, keys, untrained, remembered(program), train=train)


def _all_at_once(split, params, state, x, keys, untrained, narrow):
    count = jax.tree.leaves(x)[0].shape[0]
    keys = keys.of_frames(count)
    # Residuals that are the same for all frames (made from the weights, say) are there once.
    residual_axes = [0 if by_frame else None for by_frame in split.by_frame]
    over_frames = jax.vmap(
        split.forward,
        in_axes=(None, None, 0, None if keys is None else 0),
        out_axes=(0, residual_axes),
    )

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
        y, residuals = (
            jax.tree.map(lambda a, b: jnp.concatenate([a, b]), y_head, y),
            [
                jnp.concatenate([a, b]) if by_frame else b
                for a, b, by_frame in zip(residuals_head, residuals, split.by_frame, strict=True)
            ],
        )
    if split.update is not None:

        def update(state, of_frame):
            of_frame = iter(of_frame)
            pairs = zip(residuals, split.by_frame, strict=True)
            return split.update(state, [next(of_frame) if by else r for r, by in pairs]), None

        # There may be nothing by frame: the state that counts frames, say.
        of_frames = [r for r, by_frame in zip(residuals, split.by_frame, strict=True) if by_frame]
        state, _ = jax.lax.scan(update, jax.tree.map(jnp.asarray, state), of_frames, count)
    return y, state, with_wide_sums(pull_back) if narrow else pull_back


def _one_by_one(module, params, state, x, keys, untrained, is_seen, *, train):
    """The frames of a module that cannot run on all of them at the same time.

    As `_run_module`. Of the state those leaves that the output sees (`is_seen`) are kept for all
    frames; the forward pass is run again for the backward pass.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, state))
    frame_ids = jnp.arange(jax.tree.leaves(x)[0].shape[0], dtype=jnp.int32)

    def apply(params, leaves, x, frame_id):
        state = jax.tree.unflatten(structure, leaves)
        y, state = module.apply(params, state, x, train=train, rng=keys.of_frame(frame_id))
        return y, cast_like(jax.tree.leaves(state), leaves)

    def forward(leaves, inputs):
        y, new_leaves = apply(params, leaves, *inputs)
        return new_leaves, (y, [leaf for leaf, kept in zip(leaves, is_seen, strict=True) if kept])

    last, (y, seen) = jax.lax.scan(forward, leaves, (x, frame_ids))

    def of_one_frame(sums, inputs):
        x, frame_id, seen, cotangent = inputs
        seen = iter(seen)
        then = [next(seen) if kept else leaf for leaf, kept in zip(leaves, is_seen, strict=True)]
        _, vjp = jax.vjp(lambda params, x: apply(params, then, x, frame_id)[0], params, x)
        grads, down = vjp(cotangent)
        return accumulate(sums, grads), without_integers(down)

    def pull_back(cotangent):
        trained = _frames_from((x, frame_ids, seen), untrained)
        return jax.lax.scan(of_one_frame, wide_zeros(params), (*trained, cotangent))

    return y, jax.tree.unflatten(structure, last), pull_back


def _frames_to(tree: PyTree, stop: int) -> PyTree:
    return jax.tree.map(lambda x: x[:stop], tree)


def _frames_from(tree: PyTree, start: int) -> PyTree:
    return jax.tree.map(lambda x: x[start:], tree)
