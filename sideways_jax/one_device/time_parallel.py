"""Episodes computed module by module, with all frames at once.

Within an episode the weights do not change, so what a module does at different steps does not
depend on one another. Each module runs on all its K - i inputs in parallel, and the path of a
signal through time is a shift, which `wiring.py` knows: on the main path cotangents move *two
frames* later at every module boundary. The first 2(D-1-i) frames of module i get none and need no
backward pass; those that would come after its last one are dropped.

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

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sideways_jax.network.module import module_key
from sideways_jax.network.wiring import FRAME, Wiring, input_of, returned
from sideways_jax.one_device.state_split import draws_alike, remembered, split_program, trace
from sideways_jax.one_device.wide_sums import has_narrow, with_wide_sums, without_integers
from sideways_jax.rule.episode import Episode, paired_targets
from sideways_jax.rule.task import Task
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
    task: Task, params: tuple, state: tuple, frames: PyTree, targets: PyTree, rng: jax.Array | None
) -> Episode:
    """An episode of Sideways or backprop, all frames at once.

    The arrays of module i are by the frame that the main path brings it, from number 0; those of
    its gradients from `wiring.first_trained(i)`.

    Args:
      task: what is trained.
      params, state: tuples of D pytrees.
      frames, targets: `[K, B, ...]`.
      rng: the key of the episode, or None.
    """
    wiring, depth = task.network.wiring, task.depth
    if not task.is_pipelined:
        wiring = wiring._replace(delay=0)
    exact = task.remembers
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    late = wiring.steps_to(depth - 1)  # computation steps before the first output
    # The target that the output of each frame is paired with, for frames that reach the top.
    aligned = _frames(paired_targets(task, targets), slice(late, None))

    sent, new_state, pull_backs = {FRAME: frames}, [], []
    for i, module in enumerate(task.network.modules):
        count = num_frames - wiring.steps_to(i)  # frames that reach this module
        arrived = {
            j: _part(sent[j], wiring.frames_ahead(j, i), count) for j in wiring.sources[i]
        }  # fmt: skip
        trained = slice(wiring.first_trained(i), count)
        if exact:  # The same number of frames, but those whose cotangents come back.
            trained = slice(0, count - wiring.first_trained(i))
        sent[i], module_state, pull_back = _run_module(
            module, params[i], state[i], input_of(wiring, i, arrived), _Keys(rng, i), trained,
            train=task.train,
        )  # fmt: skip
        new_state.append(module_state)
        pull_backs.append(pull_back)

    outputs = sent[depth - 1]
    losses, cotangent = jax.vmap(jax.value_and_grad(task.loss_fn))(outputs, aligned)
    grads: dict[int, PyTree] = {}
    num_grads: dict[int, int] = {}
    sent_down: dict[int, PyTree] = {}
    for i in reversed(range(depth)):
        if i < depth - 1:
            cotangent = _cotangent_of(wiring, i, sent_down, num_grads[i + 1], exact=exact)
        num_grads[i] = jax.tree.leaves(cotangent)[0].shape[0]
        module_grads, sent_down[i] = pull_backs[i](cotangent)
        grads[i] = average(module_grads, num_grads[i], like=params[i])

    return Episode(
        grads=tuple(grads[i] for i in range(depth)),
        num_grads=jnp.asarray([num_grads[i] for i in range(depth)], jnp.int32),
        loss=average(jnp.sum(losses.astype(wide(losses.dtype))), losses.shape[0]),
        outputs=jax.tree.map(lambda y: jnp.pad(y, [(late, 0)] + [(0, 0)] * (y.ndim - 1)), outputs),
        valid=jnp.arange(num_frames) >= late,
        state=tuple(new_state),
    )


def _cotangent_of(
    wiring: Wiring, source: int, sent_down: dict[int, PyTree], num_above: int, *, exact: bool
) -> PyTree:
    """What comes back to a source for its trained frames: the sum over its receivers.

    Args:
      wiring: who hears whom, and when.
      source: a module.
      sent_down: by receiver, the cotangent of its input, for its trained frames.
      num_above: how many these are in the module above.
      exact: whether cotangents meet the inputs that they belong to, or those of now.
    """
    # What the module above sends down at its last step comes too late.
    count = num_above - wiring.delay
    parts = {}
    for k in wiring.receivers(source):
        ahead = wiring.frames_ahead(source, k)
        if exact:  # The first frames of a source are newer than all of the receiver's.
            parts[k] = _later(sent_down[k], ahead, count)
        else:  # The receiver above is the last to be trained, then k starts `ahead` frames before.
            parts[k] = _part(sent_down[k], ahead, count)
    return returned(wiring, source, parts)


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


def _run_module(module, params, state, x, keys, trained, *, train):
    """One module on all its frames `[n, B, ...]`.

    Returns the outputs of all frames, the state after the last one, and the vjp of the outputs
    of the frames `trained`, a slice, in the parameters and in those frames. What the vjp gives for
    the parameters is a sum over frames in wide dtypes.
    """
    program = trace(module, params, state, first_of(x), keys.rng, train=train)
    split = split_program(program)
    if split is not None and draws_alike(program):
        return _all_at_once(
            split, params, state, x, keys, trained, has_narrow(program.closed.jaxpr)
        )
    return _one_by_one(module, params, state, x, keys, trained, remembered(program), train=train)


def _all_at_once(split, params, state, x, keys, trained, narrow):
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

    y, pull_back, residuals = jax.vjp(
        lambda params, x: forward(params, x, _frames(keys, trained)),
        params,
        _frames(x, trained),
        has_aux=True,
    )
    for others in (slice(0, trained.start), slice(trained.stop, count)):
        if others.start == others.stop:
            continue
        parts = [forward(params, _frames(x, others), _frames(keys, others)), (y, residuals)]
        (y, residuals), (y_after, residuals_after) = parts if others.start == 0 else parts[::-1]
        y = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), y, y_after)
        residuals = [
            jnp.concatenate([a, b]) if by_frame else b
            for a, b, by_frame in zip(residuals, residuals_after, split.by_frame, strict=True)
        ]
    if split.update is not None:

        def update(state, of_frame):
            of_frame = iter(of_frame)
            pairs = zip(residuals, split.by_frame, strict=True)
            return split.update(state, [next(of_frame) if by else r for r, by in pairs]), None

        # There may be nothing by frame: the state that counts frames, say.
        of_frames = [r for r, by_frame in zip(residuals, split.by_frame, strict=True) if by_frame]
        state, _ = jax.lax.scan(update, jax.tree.map(jnp.asarray, state), of_frames, count)
    return y, state, with_wide_sums(pull_back) if narrow else pull_back


def _one_by_one(module, params, state, x, keys, trained, is_seen, *, train):
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
        inputs = _frames((x, frame_ids, seen), trained)
        return jax.lax.scan(of_one_frame, wide_zeros(params), (*inputs, cotangent))

    return y, jax.tree.unflatten(structure, last), pull_back


def _frames(tree: PyTree, some: slice) -> PyTree:
    return jax.tree.map(lambda x: x[some], tree)


def _part(tree: PyTree, start: int, count: int) -> PyTree:
    return _frames(tree, slice(start, start + count))


def _later(tree: PyTree, by: int, count: int) -> PyTree:
    """The first `count` frames of a signal that comes so many frames later, after zeros."""
    by = min(by, count)
    return jax.tree.map(
        lambda x: jnp.pad(x[: count - by], [(by, 0)] + [(0, 0)] * (x.ndim - 1)), tree
    )
