"""A small program, written by hand as the compiler for TPUs writes its own, is read correctly."""

import numpy as np
import pytest

from experiments.benchmarks.chips import clock, hlo, reading
from experiments.benchmarks.chips.topologies import Chip
from experiments.benchmarks.chips.traffic import traffic, written

# 1 GHz, 1 GB/s to memory, 10 GB/s on the chip, 0.5 GB/s to a neighbour.
CHIP = Chip(clock=1e9, memory=1e9, on_chip=1e10, link=5e8)

# Four devices send 4,000 bytes in a step of a loop that runs 10 times. Between the start and the
# end of the message the sums of a slot of 80,000 bytes are added. The switch has two branches.
PROGRAM = """
HloModule jit_train_step, is_scheduled=true

%added (p.0: f32[20000], p.1: f32[20000]) -> f32[20000] {
  %p.0 = f32[20000]{0} parameter(0)
  %p.1 = f32[20000]{0} parameter(1)
  ROOT %add.1 = f32[20000]{0} add(f32[20000]{0} %p.0, f32[20000]{0} %p.1)
}

%row (p.2: f32[20,1000], p.3: s32[]) -> f32[1,1000] {
  %p.2 = f32[20,1000]{1,0} parameter(0)
  %p.3 = s32[] parameter(1)
  ROOT %slice = f32[1,1000]{1,0} dynamic-slice(f32[20,1000]{1,0} %p.2, s32[] %p.3, s32[] %p.3), \
dynamic_slice_sizes={1,1000}
}

%branch_0 (p.4: (f32[1000])) -> f32[1000] {
  %p.4 = (f32[1000]{0}) parameter(0)
  %x.4 = f32[1000]{0} get-tuple-element((f32[1000]{0}) %p.4), index=0
  ROOT %small = f32[1000]{0} fusion(f32[1000]{0} %x.4), kind=kLoop, calls=%other, \
backend_config={"cost_model_type":"COST_MODEL_TYPE_INVALID","estimated_cycles":"2000"}
}

%branch_1 (p.5: (f32[1000])) -> f32[1000] {
  %p.5 = (f32[1000]{0}) parameter(0)
  %x.5 = f32[1000]{0} get-tuple-element((f32[1000]{0}) %p.5), index=0
  ROOT %product = f32[1000]{0} convolution(f32[1000]{0} %x.5, f32[1000]{0} %x.5), \
backend_config={"cost_model_type":"COST_MODEL_TYPE_MATMUL","estimated_cycles":"50000"}
}

%body (p.6: (s32[], f32[1000], f32[20000])) -> (s32[], f32[1000], f32[20000]) {
  %p.6 = (s32[], f32[1000]{0}, f32[20000]{0}) parameter(0)
  %i = s32[] get-tuple-element((s32[], f32[1000]{0}, f32[20000]{0}) %p.6), index=0
  %x = f32[1000]{0} get-tuple-element((s32[], f32[1000]{0}, f32[20000]{0}) %p.6), index=1
  %sums = f32[20000]{0} get-tuple-element((s32[], f32[1000]{0}, f32[20000]{0}) %p.6), index=2
  %packed = (f32[1000]{0}) tuple(f32[1000]{0} %x)
  %y = f32[1000]{0} conditional(s32[] %i, (f32[1000]{0}) %packed, (f32[1000]{0}) %packed), \
branch_computations={%branch_0, %branch_1}
  %sent = (f32[1000]{0}, f32[1000]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(\
f32[1000]{0} %y), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3}}
  %new = f32[20000]{0} fusion(f32[20000]{0} %sums, f32[20000]{0} %sums), kind=kLoop, \
calls=%added, metadata={op_name="jit(train_step)/while/body/add"}, \
backend_config={"cost_model_type":"COST_MODEL_TYPE_INVALID","estimated_cycles":"400000"}
  %come = f32[1000]{0} collective-permute-done((f32[1000]{0}, f32[1000]{0}, u32[]{:S(2)}, \
u32[]{:S(2)}) %sent)
  ROOT %next = (s32[], f32[1000]{0}, f32[20000]{0}) tuple(s32[] %i, f32[1000]{0} %come, \
f32[20000]{0} %new)
}

%ends (p.7: (s32[], f32[1000], f32[20000])) -> pred[] {
  %p.7 = (s32[], f32[1000]{0}, f32[20000]{0}) parameter(0)
  %n = s32[] get-tuple-element((s32[], f32[1000]{0}, f32[20000]{0}) %p.7), index=0
  %count = s32[] constant(10)
  ROOT %less = pred[] compare(s32[] %n, s32[] %count), direction=LT
}

ENTRY %main (a: s32[], b: f32[1000], c: f32[20000], d: f32[20,1000]) -> f32[20000] {
  %a = s32[] parameter(0)
  %b = f32[1000]{0} parameter(1)
  %c = f32[20000]{0} parameter(2)
  %d = f32[20,1000]{1,0} parameter(3)
  %first = f32[1,1000]{1,0} fusion(f32[20,1000]{1,0} %d, s32[] %a), kind=kLoop, calls=%row, \
backend_config={"cost_model_type":"COST_MODEL_TYPE_INVALID","estimated_cycles":"3000"}
  %carry = (s32[], f32[1000]{0}, f32[20000]{0}) tuple(s32[] %a, f32[1000]{0} %b, \
f32[20000]{0} %c)
  %loop = (s32[], f32[1000]{0}, f32[20000]{0}) while((s32[], f32[1000]{0}, f32[20000]{0}) \
%carry), condition=%ends, body=%body
  ROOT %result = f32[20000]{0} get-tuple-element((s32[], f32[1000]{0}, f32[20000]{0}) %loop), \
index=2
}
""".replace("\\\n", "")


@pytest.fixture(scope="module")
def program():
    return hlo.parse(PROGRAM)


def test_parsed(program):
    assert program.entry == "main"
    loop = program.computations["main"]["loop"]
    assert (loop.op, hlo.called(loop, "body"), hlo.trips(program, loop)) == ("while", "body", 10)
    switch = program.computations["body"]["y"]
    assert hlo.branches(switch) == ["branch_0", "branch_1"]
    assert hlo.root(program.computations["body"]).operands == ("i", "come", "new")
    assert {one.name for _, one in hlo.everything_in(program, "main")} >= {"loop", "y", "product"}
    with pytest.raises(ValueError, match="no ENTRY: 'not a program'"):
        hlo.parse("not a program")


def test_padding_of_tiles_counts():
    """Of bfloat16 two rows share a tile's row; 3 channels fill 4, 8 clips 128 places."""
    (one,) = hlo.arrays("bf16[8,112,112,3]{0,3,2,1:T(4,128)(2,1)S(1)}")
    assert (one.num_bytes, one.space) == (112 * 112 * 4 * 128 * 2, 1)


def test_only_what_is_sliced_counts(program):
    main = program.computations["main"]
    sliced = traffic(program, main, main["first"])
    assert sliced.memory == 4000 + 4000 + 4  # A row, in and out, and its number.
    body = program.computations["body"]
    assert traffic(program, body, body["new"]).memory == 3 * 80_000
    assert written(program, body, body["new"]) == 80_000


def test_time_of_a_step(program):
    """The largest branch, then a message of 1 + 8 us beside 400 us (by bytes 240.3) of sums."""
    read = reading.read(clock.estimate(program, CHIP))
    steps = read.steps
    assert steps.trips == 10
    assert np.allclose(steps.branches, 50e-6)
    assert np.allclose(steps.rest, [400e-6, 240.3e-6])
    # By bytes 8.3 us, but the compiler says 3 us, and element-wise work takes the less of both.
    assert np.allclose(read.outside, [3e-6, 3e-6])
    assert np.allclose(read.seconds, 10 * (steps.branches + steps.rest) + read.outside)
    assert [one.name for one in steps.parts] == ["new"]
    assert steps.parts[0].source == "jit(train_step)/while/body/add"
    assert (steps.switches, steps.kernels) == (1, 2)


def test_messages(program):
    (message,) = reading.read(clock.estimate(program, CHIP)).steps.messages
    assert (message.op, message.num_bytes, message.is_pair) == ("collective-permute", 4000, True)
    assert message.seconds == pytest.approx(9e-6)
    assert message.hidden == pytest.approx(240.3e-6)
    assert (message.kernels, message.hops) == (1, 1)
    # On a grid of 2x2 in the order of jax.devices() the middle of the chain is two hops long.
    grid = ((0, 0), (1, 0), (0, 1), (1, 1))
    (message,) = reading.read(clock.estimate(program, CHIP, grid)).steps.messages
    assert (message.hops, message.seconds) == (2, pytest.approx(10e-6))


def test_a_message_without_work_beside_it_is_waited_for():
    lines = PROGRAM.splitlines()
    done = next(n for n, line in enumerate(lines) if "collective-permute-done" in line)
    lines[done - 1 : done + 1] = [lines[done], lines[done - 1]]
    steps = reading.read(clock.estimate(hlo.parse("\n".join(lines)), CHIP)).steps
    assert (steps.messages[0].kernels, steps.messages[0].hidden) == (0, 0)
    assert np.allclose(steps.rest, [409e-6, 249.3e-6])


def test_a_gpu_has_no_times_but_all_else(program):
    cost = clock.estimate(program, None)
    steps = reading.read(cost).steps
    assert not cost.seconds.any()
    assert (steps.trips, steps.kernels, len(steps.messages)) == (10, 2, 1)
    assert steps.messages[0].kernels == 1


def test_moves_are_found(program):
    (body,) = reading.loop_bodies(program)
    assert body == "body"
    found = reading.moves(program, body, least=80_000)
    assert [(one.computation, one.instruction.name) for one in found] == [("body", "new")]
    assert reading.moves(program, body, least=80_001) == []
