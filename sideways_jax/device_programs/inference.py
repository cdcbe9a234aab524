"""Depth-parallel inference with a program for every device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sideways_jax.device_programs.links import deliver_up, heard_within, hears_frame
from sideways_jax.device_programs.places import put_modules
from sideways_jax.device_programs.plan import Where, place_modules
from sideways_jax.network.network import Network, check_still
from sideways_jax.network.wiring import FRAME, heard
from sideways_jax.rule.in_flight import following, frames_heard, no_frames
from sideways_jax.rule.rule import forward_group
from sideways_jax.tools.trees import PyTree, select, zeros


class DevicePipeline(NamedTuple):
    """What one device has between two steps."""

    within: dict[int, PyTree]  # activations between its modules, by sender
    frames: jax.Array  # int32[D-1, B], as in `PipelineState`: every device counts on
    next_frame: jax.Array  # int32[]


class Pipelined(NamedTuple):
    """An inference pipeline."""

    variables: tuple[tuple, tuple]  # params and state, on their places
    empty: list[tuple[DevicePipeline, dict]]  # for every place; what has arrived from below, too
    # step(variables, pipeline, frame, reset) -> (pipeline, output, frames)
    step: Callable[..., tuple[list, PyTree, jax.Array]]


def make_pipelined_step(
    network: Network,
    params: tuple,
    state: tuple,
    frame: PyTree,
    *,
    mesh: Mesh,
    groups: tuple[int, ...] | None,
) -> Pipelined:
    """`pipelined_step` with a program for every device; it is not to be jitted.

    Args:
      network: D modules, which run with `train=False`.
      params, state: tuples of D pytrees.
      frame: a batch of frames `[B, ...]`, or its shape.
      mesh, groups: where.
    """
    check_still(network, params, state, frame)
    where = place_modules(network, params, state, frame, mesh, groups, train=False)
    params, state = (put_modules(where.places, where.groups, x) for x in (params, state))
    outputs = network.activation_shapes(params, state, frame)
    batch = jax.tree.leaves(frame)[0].shape[0]

    def nothing(n: int) -> tuple[DevicePipeline, dict]:
        return (
            DevicePipeline(
                zeros({j: outputs[j] for j in heard_within(network.wiring, where.groups[n])}),
                no_frames(network.depth, batch),
                jnp.zeros((), jnp.int32),
            ),
            zeros({j: outputs[j] for j in where.links.heard_by(n)}),
        )

    programs, empty = [], []
    for n, place in enumerate(where.places):
        keeps = DevicePipeline(*cast(tuple, (place.batch, place.whole, place.whole)))
        start = jax.jit(partial(nothing, n), out_shardings=(keeps, place.batch))
        step = partial(_step_of_device, network, where, n)
        shown = place.batch if n == len(where.places) - 1 else place.whole
        programs.append(jax.jit(step, donate_argnums=2, out_shardings=(keeps, place.batch, shown)))
        empty.append(start())

    def step_all(variables, pipeline, frame, reset):
        params, state = variables
        reset = jnp.zeros((batch,), bool) if reset is None else reset
        new, ups, shown = [], [], ()
        for n, (place, group) in enumerate(zip(where.places, where.groups, strict=True)):
            needs_frame = hears_frame(network.wiring, group)
            x, ended = jax.device_put(
                (frame if needs_frame else (), reset), (place.batch, place.whole)
            )
            own = (tuple(tree[i] for i in group) for tree in (params, state))
            one, up, shown = programs[n](*own, *pipeline[n], x, ended)
            new.append(one)
            ups.append(up)
        arrived = deliver_up(where.links, where.places, ups)
        return list(zip(new, arrived, strict=True)), *shown

    return Pipelined((params, state), empty, step_all)


def _step_of_device(
    network: Network, where: Where, n: int, params: tuple, state: tuple, held: DevicePipeline,
    below: dict, frame: PyTree, reset: jax.Array,
) -> tuple[DevicePipeline, dict, tuple]:  # fmt: skip
    """One step of the modules of a device; the top also gives the output and its frames."""
    group, wiring = where.groups[n], network.wiring
    before = jnp.where(reset[None], -1, held.frames)
    frames = frames_heard(wiring, before, jnp.full(reset.shape, held.next_frame))
    inputs = heard(wiring, group, {FRAME: frame} | held.within | below)
    outputs = dict(
        zip(group, forward_group(network, group, params, state, inputs, frames), strict=True)
    )
    kept = DevicePipeline(
        {j: outputs[j] for j in heard_within(wiring, group)},
        frames[:-1],
        following(held.next_frame, 1),
    )
    shown: tuple = ()
    if n == len(where.groups) - 1:
        shown = select(frames[-1] >= 0, outputs[group[-1]]), frames[-1]
    return kept, {j: outputs[j] for j in where.links.sent_up(n)}, shown
