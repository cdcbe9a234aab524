"""Compiles for eight TPUs that are not there, and prints what the tests ask, as a line of JSON."""

import json
import math
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.chips import clock, hlo, programs, reading, topologies
from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.rig.measure import temporary_bytes
from experiments.benchmarks.rig.programs import loss_fn
from sideways_jax import Network, from_linen, make_mesh, models, sequential, step

DEPTH, OWNER = 4, 2  # devices, and the one with the large module
WIDTH, HIDDEN = 256, 1024  # so a slot has 1 MB for each of two matrices; others need 0.25 MB
LARGE = 2**20  # bytes


def dense(*widths):
    return sequential([from_linen(nn.Dense(width, use_bias=False)) for width in widths])


def slots(topology):
    """What devices move in a step that belongs to the device with the large module.

    Plain modules, so that nothing but parameters, sums and the optimizer's state is large.
    """
    network = Network([dense(WIDTH), dense(WIDTH), dense(HIDDEN, WIDTH), dense(10)])
    init, train_step = step.make_train_step(
        network, loss_fn, optax.sgd(0.1, momentum=0.9), execution="depth_sharded",
        mesh=make_mesh(DEPTH, 2, topology.devices), groups=(1,) * DEPTH,
    )  # fmt: skip
    clip = jax.ShapeDtypeStruct((16, 8, WIDTH), jnp.float32)
    labels = jax.ShapeDtypeStruct((16, 8), jnp.int32)
    frame = jax.ShapeDtypeStruct(clip.shape[1:], clip.dtype)
    state = jax.eval_shape(partial(init, frame=frame), jax.random.key(0))
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, clip, labels).compile()
    program = hlo.parse(compiled.as_text())
    loops = {name for body in reading.loop_bodies(program) for name in inside(program, body)}
    own = {
        name
        for _, one in hlo.everything_in(program, program.entry)
        if len(branches := hlo.branches(one)) == DEPTH
        for name in inside(program, branches[OWNER])
    }
    moved = [
        one for one in reading.moves(program, program.entry, LARGE) if one.computation in loops
    ]
    foreign = [told(one) for one in moved if one.computation not in own]
    return {"own": len(moved) - len(foreign), "foreign": foreign}


def inside(program, name):
    return {name} | {where for where, _ in hlo.everything_in(program, name)}


def told(move):
    source = clock.source(move.instruction)
    return (
        f"{move.instruction.op} {move.instruction.name} in {move.computation} "
        f"({move.num_bytes:,} bytes) of {source}"
    )


def clips(topology):
    """Memory at K = 16 and 256, messages, and what is as large as the clip; few parameters."""
    network = models.make("simple_cnn", num_classes=10, widths=(8,) * 5, dtype="bfloat16")
    case = Case("sideways", "depth_sharded", depth=DEPTH, data=2)
    memory = {}
    for frames in (256, 16):
        clip = programs.clip_of(frames, batch=8, size=32)
        compiled, _ = programs.one_program(case, network, clip, topology)
        memory[frames] = temporary_bytes(compiled)
    program = hlo.parse(compiled.as_text())
    bodies = [hlo.everything_in(program, body) for body in reading.loop_bodies(program)]
    sent = {one.op for body in bodies for _, one in body if "collective-permute" in one.op}
    elements = math.prod(clip.frames.shape) // 2  # of the share of a replica
    moved = reading.moves(program, program.entry, least=1)
    return {
        "memory": [memory[16], memory[256]],
        "permutes": sorted(sent),
        "whole_clip": [
            told(one)
            for one in moved
            if max(math.prod(a.dims) for a in one.instruction.arrays) >= elements
        ],
    }


if __name__ == "__main__":
    topology = topologies.topology("v5e:2x4")
    print(json.dumps({"slots": slots, "clips": clips}[sys.argv[1]](topology)))
