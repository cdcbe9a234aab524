"""One row for each execution: memory, steps, messages and time, out of its compiled programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.chips import clock, hlo, programs, reading
from experiments.benchmarks.chips.clock import HOP, Message, Seconds
from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.chips.topologies import Topology
from experiments.benchmarks.rig.measure import temporary_bytes
from sideways_jax.network.network import Network

# Seconds that Python takes for a device and a step: a call and its messages, as measured on an AMD
# EPYC (docs/performance.md, "What limits a program per device").
DISPATCH = 80e-6
PARTS_SHOWN = 5


class Time(NamedTuple):
    """Where the time of one call goes; seconds by estimate."""

    total: Seconds
    branches: Seconds | None  # of a step of the largest device
    rest: Seconds | None  # of a step, outside of the switch
    outside: Seconds  # of the steps
    dispatch: float | None  # seconds of Python for the call, where it dispatches every step


def row(case: Case, network: Network, size: int, frames: Sequence[int], batch: int,
        topology: Topology) -> dict[str, Any]:  # fmt: skip
    """The row of an execution.

    Args:
      case, network: what is compiled.
      size: height and width of the frames.
      frames: K: of the first the time is read, of all the memory.
      batch: clips of a call.
      topology: to compile for.
    """
    of_one = _of_devices if case.execution == "program_per_device" else _of_program
    memory, found = {}, {}
    for number, count in enumerate(frames):
        clip = programs.clip_of(count, batch, size)
        memory[count], more = of_one(case, network, clip, topology, only_memory=number > 0)
        found |= more
    least, most = memory[min(memory)], memory[max(memory)]
    return {
        "name": case.name,
        "rule": case.rule,
        "schedule": case.schedule,
        "execution": case.execution,
        "depth": case.depth,
        "data": case.data,
        "stream": case.is_stream,
        "batch": batch,
        "size": size,
        "frames": frames[0],
        "temporary_bytes": memory[frames[0]],
        "temporary_bytes_by_frames": memory,
        "growth": most / least if len(memory) > 1 and least else None,
        **found,
    }


def _of_program(
    case: Case, network: Network, clip: programs.Clip, topology: Topology, *, only_memory: bool
) -> tuple[int, dict[str, Any]]:
    """Temporary bytes, and the fields of time and messages."""
    compiled, devices = programs.one_program(case, network, clip, topology)
    memory = temporary_bytes(compiled)
    if only_memory:
        return memory, {}
    read = reading.read(_cost(compiled, topology, devices))
    steps, frames = read.steps, clip.frames.shape[0]
    if case.execution == "time_parallel":  # Its loops are not over frames.
        steps, read = None, read._replace(outside=read.seconds)
    if steps and case.depth == 1:  # All of a step is work of this device.
        steps = steps._replace(branches=steps.branches + steps.rest, rest=np.zeros(2))
    time = Time(read.seconds, steps and steps.branches, steps and steps.rest, read.outside, None)
    messages = steps.messages if steps else ()
    more = {
        "steps": steps.trips if steps else None,
        "kernels_per_step": steps.kernels if steps else None,
        "switches_per_step": steps.switches if steps else None,
        "longest_outside_of_switch": [
            {"name": one.name, "source": one.source, "us": float(one.seconds[1] * 1e6)}
            for one in (steps.parts[:PARTS_SHOWN] if steps else ())
        ],
    }
    return memory, more | _times(time, frames, topology) | _messages(messages)


def _of_devices(
    case: Case, network: Network, clip: programs.Clip, topology: Topology, *, only_memory: bool
) -> tuple[int, dict[str, Any]]:
    """The same for a program per device: the largest device, and its messages after its work."""
    devices = programs.device_programs(case, network, clip, topology)
    memory = max(temporary_bytes(one.step) for one in devices)
    if only_memory:
        return memory, {}
    frames = clip.frames.shape[0]
    costs = [_cost(one.step, topology) for one in devices]
    work = np.max([one.seconds for one in costs], axis=0)
    updates = [_cost(one.update, topology).seconds for one in devices if one.update is not None]
    outside = np.max(updates, axis=0) if updates else np.zeros(2)
    sent = max(one.bytes_sent for one in devices)
    between = np.zeros(2)
    if topology.chip and case.depth > 1:
        far = max(one.hops for one in devices)
        between = between + far * HOP + sent / topology.chip.link
    total = frames * (work + between) + outside
    time = Time(total, work, between, outside, frames * len(devices) * DISPATCH)
    more = {
        "steps": frames,
        "kernels_per_step": max(one.kernels for one in costs),
        "switches_per_step": 0,
        "longest_outside_of_switch": [],
        "device_us": [[float(x * 1e6) for x in one.seconds] for one in costs],
        "messages_per_step": max(one.messages for one in devices),
        "message_bytes": sent,
        "messages_overlapping": 0,
        "messages": "device_put",
    }
    return memory, more | _times(time, frames, topology)


def _cost(
    compiled: jax.stages.Compiled, topology: Topology, devices: Sequence[jax.Device] = ()
) -> clock.Cost:
    places = [getattr(device, "coords", None) for device in devices]
    known = places if all(places) else ()
    return clock.estimate(hlo.parse(compiled.as_text() or ""), topology.chip, known)


def _times(time: Time, frames: int, topology: Topology) -> dict[str, Any]:
    """Milliseconds of a call and microseconds of a step; none without estimates."""
    result: dict[str, Any] = {}
    for name, value, unit in (
        ("ms", time.total, 1e3), ("branch_us", time.branches, 1e6), ("rest_us", time.rest, 1e6),
        ("outside_ms", time.outside, 1e3), ("us_per_frame", time.total / frames, 1e6),
    ):  # fmt: skip
        known = topology.chip is not None and value is not None
        for k, one in enumerate(clock.ESTIMATES):
            result[f"{name}_{one}"] = float(value[k] * unit) if known else None
        shown = [result[f"{name}_{one}"] for one in reversed(clock.ESTIMATES)]
        result[name] = "{:.3g} ({:.3g})".format(*shown) if known else None
    result["dispatch_ms"] = None if time.dispatch is None else time.dispatch * 1e3
    return result


def _messages(messages: Sequence[Message]) -> dict[str, Any]:
    """What a step sends, and how much of it runs beside work."""
    beside = [one for one in messages if one.is_pair and one.kernels > 0]
    seconds = sum(one.seconds for one in messages)
    hidden = sum(min(one.hidden, one.seconds) for one in beside)
    text = None
    if messages:
        text = f"{len(messages)}, {len(beside)} beside work"
        text += f", {hidden / seconds:.0%} hidden" if seconds else ""
    return {
        "messages_per_step": len(messages),
        "message_bytes": sum(one.num_bytes for one in messages),
        "messages_overlapping": len(beside),
        "messages_hidden": hidden / seconds if seconds else None,
        "message_hops": max((one.hops for one in messages), default=None),
        "messages": text,
        "message_list": [one._asdict() for one in messages],
    }
