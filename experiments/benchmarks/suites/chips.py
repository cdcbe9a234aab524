"""Suite `chips`: what the compilers for TPUs and H100s make of every execution, without a chip.

Every execution is compiled for the devices of `--topology`, "v5e:2x4" say, or "h100:8". Nothing is
run: memory, messages and the order of instructions are those of the compiled programs, times are
estimates, `adj` and in brackets `xla` (`chips/clock.py` says what they are worth), for TPUs only.

The rows are clips with one update (SGD with momentum), and streams of batch 1 with an update at
every frame, of which `ms` are those of K frames. Frames are uint8. `devices` are those along depth
and along data. In the table

* MB is the temporary memory of a device at `--frames`, `growth` that of the largest of
  `--memory_frames` over that of the smallest;
* "branch us" is the largest device's work in a step: the largest branch of the `lax.switch`, all of
  the step on one device, 0 where all devices run the same without a switch; "rest us" is what else
  a step takes on every device: sums, messages, copies;
* "outside ms" is what a call takes outside of its steps: the optimizer, conversion of the clip;
* messages are those of a step, how many of them have work between their start and their end, and
  how much of their time that hides;
* a program per device has no rest but its messages. Its time is that of the devices; "dispatch ms"
  is what Python takes to start their programs, as it was measured on a CPU. It is compiled where
  all chips are on one host.

Compiling takes 10 to 60 s for each execution and number of frames: `--only=WORD` compiles those
with that word in their names, `--memory_frames=64` (the number of `--frames`) one program each.
A row is in the file as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
from rich.progress import Progress

from experiments.benchmarks.chips import executions, topologies
from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.chips.picture import draw as picture
from experiments.benchmarks.chips.rows import row
from experiments.benchmarks.rig.suite import Dtype, Row, Suite
from sideways_jax import models

SHOWN = {
    "model": "{}",
    "name": "{}",
    "ms": "{}",
    "us_per_frame": "{}",
    "megabytes": "{:,.3g}",
    "growth": "{:.2f}",
    "branch_us": "{}",
    "rest_us": "{}",
    "outside_ms": "{}",
    "dispatch_ms": "{:.3g}",
    "switches_per_step": "{}",
    "messages": "{}",
}
HEADERS = {
    "name": "execution",
    "us_per_frame": "us / frame",
    "megabytes": "MB",
    "switches_per_step": "switches",
}


class Settings(NamedTuple):
    """Settings; `suite.HELP` explains them."""

    model: str | None = None  # simple_cnn and vgg8
    topology: str = "v5e:2x4"
    frames: int = 64
    memory_frames: tuple[int, ...] = (16, 256)
    depths: tuple[int, ...] | None = None  # all chips, and half of them
    batch: int = 8
    size: int = 112
    dtype: Dtype = "bfloat16"
    only: str = ""


def prepare(settings: Settings) -> None:
    """Raises ValueError without the compiler, and for what does not fit the chips or networks."""
    jax.config.update("jax_platforms", "cpu")
    frames = (settings.frames, *settings.memory_frames)
    for model in _models(settings):
        network = models.make(model, num_classes=10, dtype=settings.dtype)
        jax.eval_shape(
            network.init,
            jax.random.key(0),
            jax.ShapeDtypeStruct((settings.batch, settings.size, settings.size, 3), "uint8"),
        )
        if min(frames) < 2 * network.depth - 1:
            raise ValueError(
                f"{min(frames)} frames are too few for the {network.depth} modules of {model}: "
                f"give at least {2 * network.depth - 1} in --frames and --memory_frames"
            )
        for depth in settings.depths or ():
            if depth > network.depth:
                raise ValueError(
                    f"--depths={depth}: {model} has {network.depth} modules, so at most that many"
                )
    topologies.check(settings.topology)


def rows(settings: Settings, progress: Progress) -> Iterator[Row]:
    """Compiles; one row for each network and execution, as soon as it is there.

    Raises:
      ValueError: for a topology that is not known, or a batch that does not divide.
    """
    topology = topologies.topology(settings.topology)
    wanted = [
        (model, case)
        for model in _models(settings)
        for case in cases(settings, model, len(topology.devices))
        if topology.is_one_host or case.execution != "program_per_device"
    ]
    frames = tuple(dict.fromkeys((settings.frames, *settings.memory_frames)))
    task = progress.add_task("compiling", total=len(wanted))
    for model, case in wanted:
        progress.update(task, description=f"compiling {model}, {case.name}")
        network = models.make(model, num_classes=10, dtype=settings.dtype)
        batch = 1 if case.is_stream else settings.batch
        found = row(case, network, settings.size, frames, batch, topology)
        about = {"suite": "chips", "model": model, "topology": settings.topology}
        about |= {"dtype": settings.dtype, "compiler": topologies.version(settings.topology)}
        yield about | found | {"megabytes": found["temporary_bytes"] / 1e6}
        progress.advance(task)
    progress.remove_task(task)


def _models(settings: Settings) -> tuple[str, ...]:
    return (settings.model,) if settings.model else ("simple_cnn", "vgg8")


def cases(settings: Settings, model: str, chips: int) -> list[Case]:
    """The executions of a network that are compiled.

    Raises:
      ValueError: if meshes do not fit the chips, or do not divide the batch.
    """
    modules = models.make(model, num_classes=10).depth
    depths = settings.depths or executions.default_depths(modules, chips)
    found = executions.cases(depths, chips)
    for case in found:
        if case.is_stream or case.depth * case.data == 1:
            continue
        if case.depth * case.data != chips or settings.batch % case.data:
            raise ValueError(
                f"{case.name} (depth x data) does not fit {chips} chips and --batch="
                f"{settings.batch}: --depths must divide the chips, and what is left the batch"
            )
    return [case for case in found if settings.only in case.name]


SUITE = Suite(
    settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN, headers=HEADERS
)
